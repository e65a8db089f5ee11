"""Errors whose message is one line for the user. Imports neither torch nor other modules."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class QuantArenaError(Exception):
    """Base class of errors that are fully explained by their message of one line.

    Attributes:
        message: what is wrong, where, and what to do about it.
    """

    def __init__(self, message: str) -> None:
        self.message = " ".join(message.split())
        super().__init__(self.message)


class Stop(BaseException):
    """Ends work from outside, as a timeout does: nobody reports it as an error of the work."""


class Interrupted(KeyboardInterrupt):
    """Somebody asks the run to end: the command line's handlers of signals raise this."""


def is_interrupt(error: BaseException) -> bool:
    """Whether somebody asks for the end; a plug-in may raise ``KeyboardInterrupt`` of its own."""
    if isinstance(error, Interrupted):
        return True
    unhandled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, KeyboardInterrupt) and unhandled


class UserError(QuantArenaError):
    """A mistake of the user: the command line prints the message and exits with 2."""


class UnknownName(UserError):
    """A name that is not registered; the message suggests similar ones."""


class BrokenModel(UserError):
    """A model folder that is incomplete, damaged, or no diffusers pipeline."""


class Unsupported(QuantArenaError):
    """A method cannot do what was asked, by design: the cell becomes a ``skipped`` row."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: similar names where there are any, and all known ones.

    >>> did_you_mean("rtm", ["fp", "rtn", "q_diffusion"])
    'did you mean rtn? (known: fp, q_diffusion, rtn)'
    """
    names = sorted(set(known))
    if not names:
        return "none are known"
    folded = {option.lower().replace("-", "_"): option for option in names}
    near = get_close_matches(name.lower().replace("-", "_"), folded, n=3, cutoff=0.55)
    listing = f"known: {', '.join(names)}"
    if not near:
        return listing
    return f"did you mean {' or '.join(folded[option] for option in near)}? ({listing})"
