"""Metrics of plug-ins: functions that score an image and its prompt, such as preference models.

A plug-in is a function with the decorator ``metric``. It lives in a file that the variable
``QUANTARENA_METRICS`` names, in a package with an entry point of the group ``quantarena.metrics``,
or in a plug-in file of methods (``--plugin``).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
from torch import Tensor

from quantarena.bench.errors import Stop, UserError, is_interrupt
from quantarena.bench.metrics.bootstrap import Groups
from quantarena.bench.metrics.measurement import mean_of, unmeasured
from quantarena.bench.metrics.names import METRICS, MetricInfo
from quantarena.bench.schema import Measurement
from quantarena.methods.registry import plugin_module

GROUP = "quantarena.metrics"
VARIABLE = "QUANTARENA_METRICS"
Function = Callable[[Tensor, tuple[str, ...]], object]
"""A function of uint8 images (N, 3, H, W) and N prompts, or no prompts, that returns N numbers."""


@dataclass(frozen=True, slots=True)
class MetricPlugin:
    """A registered metric.

    Attributes:
        info: name, title, unit and direction.
        function: computes one number per image.
        origin: the version that was stated, or the module of the function.
        needs_prompts: whether workloads without prompts leave it out.
    """

    info: MetricInfo
    function: Function
    origin: str
    needs_prompts: bool


_known: dict[str, MetricPlugin] = {}
_loaded: set[str] = set()


def metric(
    name: str,
    *,
    higher_is_better: bool = True,
    unit: str = "",
    title: str = "",
    version: str = "",
    needs_prompts: bool = True,
) -> Callable[[Function], Function]:
    """Function decorator that registers a metric: it scores every cell, on the quality board.

    Args:
        name: name with implementation and weights, such as ``imagereward/v1.0``.
        higher_is_better: whether larger values are better.
        unit: unit of the values.
        title: one line for readers.
        version: version of the implementation, which each measurement states.
        needs_prompts: leave the metric out for workloads without prompts.

    Raises:
        UserError: the name belongs to a metric of quantarena.
    """
    if name in METRICS or name.split("/")[0] in {"fid", "kid", "psnr", "ssim", "lpips"}:
        raise UserError(f"metric name {name!r} belongs to quantarena: take another")

    def add(function: Function) -> Function:
        info = MetricInfo(name, title or name, unit, higher_is_better, "quality", 1, "a plug-in")
        origin = version or getattr(function, "__module__", "")
        _known[name] = MetricPlugin(info, function, origin, needs_prompts)
        return function

    return add


def load_plugins() -> tuple[MetricPlugin, ...]:
    """All plug-ins, each loaded once.

    Raises:
        UserError: a file or package fails to import.
    """
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        _load_file(Path(path).expanduser().resolve())
    for point in entry_points(group=GROUP):
        if point.value not in _loaded:
            _import(point.value, point.load)
    return tuple(_known[name] for name in sorted(_known))


def plugin_metrics(
    images: Tensor,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    groups: Groups | None = None,
) -> tuple[tuple[Measurement, ...], dict[str, np.ndarray]]:
    """Measure images by every plug-in. One that fails gives a measurement with the reason.

    Args:
        images: uint8 (N, 3, H, W).
        prompts: N prompts, or none.
        seed: seed of the resamples.
        groups: prompt of each image, if prompts repeat.

    Returns:
        The measurements, and (N,) values for each metric that was computed.
    """
    measured, values = [], {}
    for plugin in load_plugins():
        info = plugin.info
        if plugin.needs_prompts and not prompts:
            measured.append(unmeasured(info, "the workload draws from no prompts"))
            continue
        try:
            found = np.asarray(plugin.function(images, tuple(prompts)), np.float64)
            if found.shape != (len(images),):
                raise ValueError(f"gave shape {found.shape} for {len(images)} images")
            one = mean_of(info, found, seed=seed, groups=groups, impl=plugin.origin)
        except BaseException as error:  # a plug-in may raise anything
            if isinstance(error, Stop) or is_interrupt(error):
                raise
            first = (str(error).strip().splitlines() or [""])[0]
            measured.append(unmeasured(info, f"{type(error).__name__}: {first}"))
            continue
        measured.append(one)
        values[info.name] = found
    return tuple(measured), values


def _load_file(path: Path) -> None:
    if str(path) in _loaded:
        return
    _, execute = plugin_module(path, "quantarena_metric", f"{VARIABLE}: {path}")
    _import(str(path), execute)


def _import(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except BaseException as error:
        if isinstance(error, (UserError, Stop)) or is_interrupt(error):
            raise
        raise UserError(f"metric plug-in {what}: {type(error).__name__}: {error}") from error
    _loaded.add(what)
