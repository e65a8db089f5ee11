"""The command line ``quantarena VERB``. A verb imports its libraries when it runs.

Exit codes: 0 ok, 1 some cells failed (the page is still written), 2 a mistake in the command,
130 interrupted. Results go to stdout, as text or, with ``--json``, as one JSON document. Progress
and messages go to stderr.
"""

import contextlib
import functools
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

import quantarena
from quantarena.bench.cli import (
    budget,
    claims,
    gate,
    info,
    model,
    plan_run,
    results,
    share,
    tune,
    votes,
    workload,
)
from quantarena.bench.cli.common import Verb
from quantarena.bench.cli.output.stdout import abandon_stdout, reserved_stdout
from quantarena.bench.documents import clean_text
from quantarena.bench.errors import Interrupted, QuantArenaError, UserError, one_line

# Typer contains a copy of click since 0.26 and uses the installed one before: take its own.
_CLICK_ERROR: Any = typer.BadParameter.__mro__[2]
OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="quantarena",
    help="Compare quantization methods for diffusion models under one protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: dict[str, Verb] = {
    **plan_run.VERBS,
    **budget.VERBS,
    **results.VERBS,
    **share.VERBS,
    **claims.VERBS,
    **info.VERBS,
    **model.VERBS,
    **workload.VERBS,
    **gate.VERBS,
    **tune.VERBS,
    **votes.VERBS,
}
_GROUPS = {"votes": (votes.GROUP_HELP, votes.GROUP)}
"""Verbs of two words, by the first."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"quantarena {quantarena.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Compare quantization methods for diffusion models under one protocol."""


def _reserving(verb: Verb) -> Verb:
    """The verb with stdout kept for its result."""

    @functools.wraps(verb)
    def command(*args: Any, **kwargs: Any) -> int | None:
        with reserved_stdout():
            return verb(*args, **kwargs)

    return command


for _name, _verb in _VERBS.items():
    app.command(_name)(_reserving(_verb))
for _name, (_help, _verbs) in _GROUPS.items():
    _group = typer.Typer(help=_help, no_args_is_help=True, rich_markup_mode=None)
    for _second, _verb in _verbs.items():
        _group.command(_second)(_reserving(_verb))
    app.add_typer(_group, name=_name)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. A user's mistake prints one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _ending_at_signals():
        return _run(words)


@contextlib.contextmanager
def _ending_at_signals() -> Iterator[None]:
    """End the block on SIGTERM as on Ctrl-C: stop the workers, keep finished cells.

    A process that ignores one of them, as jobs in the background do, goes on doing so.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # set by no Python code, so that none can set it again
                signal.signal(number, handler)


def _interrupt(signum: int, frame: FrameType | None) -> Any:
    raise Interrupted


def _run(words: Sequence[str]) -> int:
    try:
        _check_words(words)
        code = app(args=words or ["--help"], standalone_mode=False)
    except UserError as error:
        return _complain(str(error), USAGE)
    except QuantArenaError as error:
        return _complain(str(error), SOME_FAILED)
    except _CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _complain(f"{error.format_message()}{hint}", USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has ended.
        sys.stderr.close()
        return OK
    except OSError as error:
        # A name that is too long, a folder that may not be read, a disk that fails.
        place = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror or one_line(error)}{place}", USAGE)
    return code if isinstance(code, int) else OK


def main() -> None:
    """The entry point of the console script."""
    code = run()
    abandon_stdout()
    sys.exit(code)


def _check_words(words: Sequence[str]) -> None:
    """Refuse empty arguments and those that are no text.

    An empty one would silently stand for a default or for the current folder. An empty prompt is a
    prompt.

    Raises:
        UserError: there is one.
    """
    for before, word in zip(["", *words], words, strict=False):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value and (word == "" or word.endswith("=")) and option != "--prompt":
            named = f"{option} is empty" if option.startswith("-") else "an argument is empty"
            raise UserError(f"{named}: give a value, or leave it out")
        if "\0" in word or word != word.encode("utf-8", "replace").decode():
            raise UserError(f"an argument is no UTF-8 text: {word!a}")


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # nobody can read it: the code still says it
        print(f"error: {' '.join(clean_text(message).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
