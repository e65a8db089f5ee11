"""What the options of ``plan`` and ``run`` come to: names checked, grid made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from quantarena.bench.cli.common import listed
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.plan import lookup, presets
from quantarena.bench.spec import Grid

EXECUTORS = ("auto", "local", "ray")

PresetArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(presets.PRESETS)}.")]
WorkloadOption = Annotated[
    list[str] | None,
    typer.Option(
        "--workload",
        "--model",
        help="Workload, diffusers pipeline folder, or id of a downloaded hub model; repeatable.",
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting of the workloads, such as guidance=7.5, sampler=DDIM, prompts=FILE; "
        "repeatable.",
    ),
]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Method; repeatable, commas allowed.")
]
BitsOption = Annotated[
    list[str] | None, typer.Option("--bits", help="Such as w4a8; repeatable, commas allowed.")
]
SeedOption = Annotated[list[int] | None, typer.Option("--seed", help="Seed; repeatable.")]
ImagesOption = Annotated[int | None, typer.Option("--images", help="Images a cell.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Sampler steps.")]
IterationsOption = Annotated[
    int | None, typer.Option("--iterations", help="Reconstruction iterations a block.")
]
VariantOption = Annotated[
    list[str] | None,
    typer.Option("--variant", help="paper, or release where the official code differs; repeatable"),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option("--policy", help="uniform, or published for each paper's own layers; repeatable."),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Folder under --results; the preset's name if absent.")
]
PreferOption = Annotated[
    bool, typer.Option("--prefer-plugin", help="A plug-in wins over a built-in of that name.")
]
ForceOption = Annotated[bool, typer.Option("--force/--only-missing", help="Run done cells again.")]
ExecutorOption = Annotated[str, typer.Option("--executor", help=f"{', '.join(EXECUTORS)}.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Workers of Ray.")]


@dataclass(frozen=True, slots=True)
class Request:
    """What the options of ``plan`` and ``run`` come to.

    Attributes:
        grid: the cells asked for.
        executor: ``auto``, ``local`` or ``ray``.
        workers: of Ray, or None.
        plugins: absolute paths.
        results: root of the results folders.
        force: whether done cells run again.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
        warning: of the preset, or empty.
        command: that asks for the same cells again.
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

    @property
    def folder(self) -> Path:
        """Where rows and page go."""
        return self.results / self.grid.name


def made_choice(
    workload: list[str] | None,
    method: list[str] | None,
    bits: list[str] | None,
    seed: list[int] | None,
    images: int | None,
    steps: int | None,
    iterations: int | None,
    name: str | None,
    variant: list[str] | None,
    policy: list[str] | None,
    settings: list[str] | None = None,
) -> presets.Choice:
    """The options that change a preset, in one value."""
    return presets.Choice(
        workloads=listed(workload),
        methods=listed(method),
        bits=listed(bits),
        seeds=tuple(seed or ()),
        images=images,
        steps=steps,
        iterations=iterations,
        name=name,
        variants=listed(variant),
        policies=listed(policy),
        settings=tuple(settings or ()),
    )


def made_request(
    preset: str,
    choice: presets.Choice,
    plugin: list[str] | None,
    prefer_plugin: bool,
    results: Path,
    force: bool,
    executor: str,
    workers: int | None,
) -> Request:
    """Check every name before anything is written or started."""
    base = presets.preset(preset)
    if executor not in EXECUTORS:
        raise UserError(f"unknown executor {executor!r}: {did_you_mean(executor, EXECUTORS)}")
    plugins = lookup.plugin_paths(plugin or ())
    grid = presets.choose(base.grid, choice)
    lookup.check_methods(grid.all_methods, plugins)
    workloads = tuple(lookup.canonical_workload(name, choice.settings) for name in grid.workloads)
    own = base.executor if executor == "auto" else executor
    return Request(
        grid=presets.with_workloads(grid, workloads),
        executor=own,
        workers=workers,
        plugins=plugins,
        results=results,
        force=force,
        prefer_plugin=prefer_plugin,
        warning=base.warning,
        command=presets.command(preset, choice, plugins),
    )
