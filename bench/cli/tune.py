"""The verb that personalises a model: ``tune``."""

import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from quantarena.bench.cli.common import JsonOption, StageLines, Verb, emit
from quantarena.bench.cli.options import DeviceOption, OffloadOption, place, place_words
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.plan import lookup
from quantarena.bench.plan.plan import minutes
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.spec import MOST_SEED
from quantarena.bench.target import Target
from quantarena.methods.core.bits import FP_WIDTH, parse_bits

APPROACHES = ("tuneqdm", "peqa", "lora")


def tune(
    workload: Annotated[
        str,
        typer.Argument(
            help="Workload that draws from prompts, or a weight-only folder that quantize wrote."
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Option(
            "--images",
            help="Folder with square images of a subject; repeat it, with a --token each, for "
            "several subjects.",
            metavar="DIR",
        ),
    ],
    token: Annotated[
        list[str], typer.Option("--token", help="Rare word that will stand for the subject.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", metavar="DIR")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Prompt of the images, with the token; 'a TOKEN' if none."),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", help="Bits of the weights, w4 or w4a16; not for a packed folder."),
    ] = None,
    approach: Annotated[
        str, typer.Option("--approach", help=f"What learns: {', '.join(APPROACHES)}.")
    ] = APPROACHES[0],
    updates: Annotated[
        int | None, typer.Option(min=1, help="Number of updates; by default 100.")
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(min=1, help="Images of each update, one after the other; by default 4."),
    ] = None,
    experts: Annotated[
        int, typer.Option(min=1, help="Pairs of gains, each for a range of timesteps (tuneqdm).")
    ] = 4,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the branches (lora).")] = 4,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Learning rate; by default the approach's own.")
    ] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="TuneQDM's own 400 updates of one image at a rate of 3e-6."),
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Compute activations twice: less memory, more time."),
    ] = False,
    device: DeviceOption = None,
    offload: OffloadOption = None,
    steps: Annotated[int, typer.Option(min=0, help="Sampler steps; 0 is the model's own.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over an earlier export.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Tune a model to a few images on packed weights, and write it as quantize does."""
    if approach not in APPROACHES:
        raise UserError(f"unknown approach {approach!r}: {did_you_mean(approach, APPROACHES)}")
    prompts = prompt or [""] * len(images)
    if not len(images) == len(token) == len(prompts):
        raise UserError(
            f"{len(images)} --images, {len(token)} --token and {len(prompts)} --prompt do not "
            "pair: give one of each for every subject"
        )
    if len(set(token)) < len(token):
        raise UserError("two subjects have the same token: give each its own")
    target = place(device, offload)
    lookup.check_kernels()
    widths = None if bits is None else _weights_only(bits)
    tuning = importlib.import_module("quantarena.methods.tuning")
    if paper:
        if approach != APPROACHES[0] or (updates, accumulate, lr) != (None, None, None):
            raise UserError(
                "--paper is TuneQDM's own recipe: leave --updates, --accumulate, --lr and other "
                "approaches out"
            )
        recipe = tuning.Recipe.as_published(experts, recompute=recompute)
    else:
        recipe = tuning.Recipe(
            tuning.Approach(approach), experts, rank, updates or 100, accumulate or 4, lr, recompute
        )
    name = lookup.canonical_workload(workload, packed=True)
    subjects = tuple(zip(images, token, prompts, strict=True))
    ship = importlib.import_module("quantarena.bench.personalise.export")
    command = _command(name, subjects, widths, recipe, steps, seed, target)
    order = ship.Order(name, subjects, widths, recipe, steps, seed, output, force, command, target)
    document: dict[str, Any] = ship.tune_model(order, StageLines(Reporter(quiet=quiet)))
    tuned = document["meta"]["tuning"]
    most = max(tuned["memory"]["preparing"], tuned["memory"]["peak"])
    line = (
        f"{output}: {tuned['trainable']:,} values learned in {minutes(tuned['seconds'])}, loss "
        f"{tuned['loss_first']:.4f} to {tuned['loss_last']:.4f}, at most "
        f"{most / 2**20:.0f} MiB for the network; draw with: "
        f"quantarena sample {shlex.quote(str(output))}"
    )
    emit({"folder": str(output), **document}, line, as_json=as_json)
    return 0


VERBS: dict[str, Verb] = {"tune": tune}


def _command(
    workload: str,
    subjects: Sequence[tuple[Path, str, str]],
    bits: str | None,
    recipe: Any,
    steps: int,
    seed: int,
    target: Target,
) -> str:
    """The command line that makes the model again; paths by their last name."""
    words = ["quantarena", "tune", lookup.shown_workload(workload)]
    for folder, token, prompt in subjects:
        words += ["--images", folder.resolve().name, "--token", token]
        words += ["--prompt", prompt or f"a {token}"]
    words += [] if bits is None else ["--bits", bits]
    words += ["--approach", str(recipe.approach)]
    own = ["--updates", str(recipe.updates), "--accumulate", str(recipe.accumulate)]
    words += ["--paper"] if recipe.published else [*own, "--lr", f"{recipe.rate:g}"]
    words += ["--experts", str(recipe.experts)] if recipe.approach == "tuneqdm" else []
    words += ["--rank", str(recipe.rank)] if recipe.approach == "lora" else []
    words += ["--recompute"] if recipe.recompute else []
    words += place_words(target)
    words += ["--steps", str(steps)] if steps else []
    return shlex.join([*words, "--seed", str(seed), "-o", "DIR"])


def _weights_only(bits: str) -> str:
    """The widths of ``w4`` or ``w4a16``.

    Raises:
        UserError: other bits.
    """
    try:
        widths = parse_bits(bits if "a" in bits else f"{bits}a{FP_WIDTH}")
    except ValueError as error:
        raise UserError(str(error)) from None
    if widths.weight == FP_WIDTH or widths.act != FP_WIDTH:
        raise UserError(f"bits {bits!r}: tune packs weights to 1 to 8 bits and nothing else: w4")
    return str(widths)
