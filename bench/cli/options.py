"""The options of ``plan`` and ``run``, written once, and the request that they come to."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from quantarena.bench.cli.common import RESULTS, PluginOption, ResultsOption, listed
from quantarena.bench.cluster.session import checked_address
from quantarena.bench.errors import Unsupported, UserError, did_you_mean
from quantarena.bench.plan import lookup, presets
from quantarena.bench.spec import Grid
from quantarena.bench.target import DEFAULT_TARGET, Target, checked_target

MOST_WORKERS = 4096
EXECUTORS = ("auto", "local", "ray")
FOLDER = "folder"
"""The rival whose network is what ``--against`` compares."""

SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting of the workloads, such as guidance=7.5, sampler=DDIM or prompts=FILE; "
        "repeatable.",
    ),
]
MethodOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="METHOD.NAME=VALUE",
        help="Option of a method, such as dgq.groups=4; repeatable. "
        "'quantarena ls methods --options' lists them.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where everything runs: cpu, cuda, cuda:1 or mps.")
]
OffloadOption = Annotated[
    bool | None,
    typer.Option(
        "--offload",
        help="Keep networks on the host and move one block at a time to --device, for networks "
        "that do not fit it. Methods that learn the whole network at once are left out.",
    ),
]
PreferOption = Annotated[
    bool, typer.Option("--prefer-plugin", help="Let a plug-in win over a built-in of its name.")
]


@dataclass(frozen=True)
class RequestOptions:
    """The options that ``plan`` and ``run`` have in common.

    The fields of a preset's budget that can be changed have the names of ``presets.LIMITS``.
    """

    preset: Annotated[str, typer.Argument(help=f"One of {', '.join(presets.PRESETS)}.")] = (
        presets.DEFAULT
    )
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            "--model",
            help="Workload, diffusers pipeline folder, or id of a downloaded hub model; "
            "repeatable.",
        ),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Workload of full precision that a quantized --workload is compared with: a "
            "folder of quantize or of diffusers, or a .gguf file.",
        ),
    ] = None
    settings: SettingsOption = None
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Method; repeatable, commas allowed.")
    ] = None
    option: MethodOptionsOption = None
    bits: Annotated[
        list[str] | None,
        typer.Option("--bits", help="Bits such as w4a8; repeatable, commas allowed."),
    ] = None
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Seed; repeatable.")] = None
    images: Annotated[int | None, typer.Option("--images", help="Images per cell.")] = None
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="N[,N...]",
            help="Images per run of the pipeline, and of one timed step. Of several, such as "
            "16,1,4, images are drawn with the largest, and steps are timed with each.",
        ),
    ] = None
    steps: Annotated[int | None, typer.Option("--steps", help="Sampler steps.")] = None
    calibration_images: Annotated[
        int | None,
        typer.Option(
            "--calibration-images", help="Images whose sampling is recorded for calibration."
        ),
    ] = None
    calibration_samples: Annotated[
        int | None, typer.Option("--samples", help="Calibration points that methods learn on.")
    ] = None
    range_samples: Annotated[
        int | None, typer.Option("--range-samples", help="Points that ranges are found on.")
    ] = None
    iterations: Annotated[
        int | None, typer.Option("--iterations", help="Reconstruction iterations per block.")
    ] = None
    name: Annotated[
        str | None,
        typer.Option("--name", help="Folder under --results; by default the preset's name."),
    ] = None
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="paper, or release for the official code's behaviour where it differs; "
            "repeatable.",
        ),
    ] = None
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="uniform, budget for widths that the method chooses at the same cost, or "
            "published for each paper's own layers and widths; repeatable.",
        ),
    ] = None
    device: DeviceOption = None
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="fp32, bf16 or fp16: number format of all that stays unquantized while images are "
            "drawn and steps are timed.",
        ),
    ] = None
    threads: Annotated[
        int | None, typer.Option("--threads", help="Torch threads while steps are timed.")
    ] = None
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            help="What runs packed networks: torch (our own kernels), openvino or onnx.",
        ),
    ] = None
    offload: OffloadOption = None
    plugin: PluginOption = None
    prefer_plugin: PreferOption = False
    results: ResultsOption = RESULTS
    force: Annotated[
        bool, typer.Option("--force/--only-missing", help="Run finished cells again.")
    ] = False
    executor: Annotated[str, typer.Option("--executor", help=f"One of {', '.join(EXECUTORS)}.")] = (
        "auto"
    )
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=MOST_WORKERS, help="Number of Ray workers."),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="auto|HOST:PORT",
            help="Run on the Ray cluster that this machine is part of; --results must be a folder "
            "that all its nodes share. docs/scale/clusters.md",
        ),
    ] = None

    @property
    def choice(self) -> presets.Choice:
        """The options that change a preset."""
        limits: dict[str, Any] = {name: getattr(self, name) for name in presets.LIMITS}
        batches = _batches(self.batch)
        limits |= {"batch": max(batches, default=None)}
        limits["latency_batches"] = tuple(size for size in batches if size != limits["batch"])
        return presets.Choice(
            workloads=listed("--workload", self.workload),
            methods=listed("--method", self.method),
            bits=listed("--bits", self.bits),
            seeds=tuple(self.seed or ()),
            name=self.name,
            variants=listed("--variant", self.variant),
            policies=listed("--policy", self.policy),
            settings=tuple(self.settings or ()),
            options=tuple(self.option or ()),
            target=self.target,
            **limits,
        )

    @property
    def target(self) -> Target | None:
        """The target that is asked for; None leaves the preset's."""
        asked = (self.device, self.dtype, self.threads, self.runtime, self.offload)
        return None if asked == (None,) * len(asked) else checked_target(*asked)


def place(device: str | None, offload: bool | None) -> Target:
    """The target of a verb that makes a model: where networks run, and whether they stay there.

    Raises:
        UserError: this machine has no such device, or the two do not go together.
    """
    target = checked_target(device, offload=offload)
    lookup.check_target(target)
    return target


def place_words(target: Target) -> list[str]:
    """The options that ask for a place again, with the device's kind alone: numbers are local."""
    words = [] if target.kind == DEFAULT_TARGET.kind else ["--device", target.kind]
    return words + (["--offload"] if target.offload else [])


def _batches(given: str | None) -> tuple[int, ...]:
    """The batches of ``--batch``; empty where it is left out.

    Raises:
        UserError: one is no whole number from 1 on.
    """
    parts = listed("--batch", None if given is None else [given])
    for part in parts:
        if not (part.isascii() and part.isdigit() and 1 <= int(part) <= presets.MOST):
            raise UserError(f"--batch {part}: it must be a whole number from 1 to {presets.MOST:,}")
    return tuple(dict.fromkeys(int(part) for part in parts))


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of ``plan`` or ``run``, every name checked.

    Attributes:
        grid: the cells asked for.
        executor: ``auto``, ``local`` or ``ray``.
        workers: number of Ray workers, or None.
        plugins: absolute paths.
        results: root of the results folders.
        force: whether finished cells run again.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
        warning: the preset's warning, or empty.
        command: command line that asks for the same cells again.
        address: of the Ray cluster to run on; empty for this machine alone.
    """

    grid: Grid
    executor: str
    workers: int | None
    plugins: tuple[str, ...]
    results: Path
    force: bool
    prefer_plugin: bool
    warning: str
    command: str
    address: str = ""

    @property
    def folder(self) -> Path:
        """Folder of the rows and the page."""
        return self.results / self.grid.name


def _judged(given: RequestOptions) -> RequestOptions:
    """The request that scores a quantized folder as a row of the rival ``folder``.

    Raises:
        UserError: there is not exactly one, it is none, or its library is absent.
    """
    if given.against is None:
        return given
    names = given.workload or ()
    path = Path(names[0]).expanduser().resolve() if len(names) == 1 else None
    if path is None or not path.exists():
        raise UserError(
            "--against BASE compares one quantized folder or .gguf file with BASE: name it by "
            "--workload, once"
        )
    bits = given.bits
    if not bits:
        saved = importlib.import_module("quantarena.methods.rivals.saved")
        try:
            bits = [saved.most_held(path)]
        except Unsupported as error:
            raise UserError(str(error)) from None
    return replace(
        given,
        workload=[given.against],
        against=None,
        method=[*(given.method or ()), FOLDER],
        bits=bits,
        option=[*(given.option or ()), f"{FOLDER}.path={path}"],
    )


def made_request(given: RequestOptions) -> Request:
    """Check every name before anything is written or started.

    Raises:
        UserError: a name that does not exist, or a value out of range.
    """
    given = _judged(given)
    base, choice = presets.preset(given.preset), given.choice
    if given.executor not in EXECUTORS:
        hint = did_you_mean(given.executor, EXECUTORS)
        raise UserError(f"unknown executor {given.executor!r}: {hint}")
    plugins = lookup.plugin_paths(given.plugin or ())
    grid = presets.choose(base.grid, choice)
    address = _on_cluster(given, grid.target) if given.address is not None else ""
    if grid.target.kind != "cpu" and given.executor == "ray" and not address:
        raise UserError(f"--executor ray runs on CPUs: for {grid.target.device} take local")
    if not address or grid.target.kind == "cpu":  # else nodes with a GPU know
        lookup.check_target(grid.target)
    lookup.check_kernels()
    lookup.check_methods(grid.all_methods, plugins, prefer_plugin=given.prefer_plugin)
    options = lookup.method_options(
        choice.options, grid.all_methods, plugins, prefer_plugin=given.prefer_plugin
    )
    workloads = tuple(lookup.canonical_workload(name, choice.settings) for name in grid.workloads)
    return Request(
        grid=presets.resolved(grid, workloads, options),
        executor=base.executor if given.executor == "auto" else given.executor,
        workers=given.workers,
        plugins=plugins,
        results=given.results,
        force=given.force,
        prefer_plugin=given.prefer_plugin,
        warning=base.warning,
        command=presets.command(given.preset, choice, plugins),
        address=address,
    )


def _on_cluster(given: RequestOptions, target: Target) -> str:
    """The address of the cluster.

    Raises:
        UserError: it is no address, or it does not go together with another option.
    """
    if given.executor == "local":
        raise UserError("--address runs on a cluster, --executor local in this process: drop one")
    if target.kind == "mps" or ":" in target.device:
        raise UserError(
            f"--device {target.device} --address: the cluster chooses the device of each worker: "
            "take --device cuda, or the CPU"
        )
    return checked_address(given.address or "")
