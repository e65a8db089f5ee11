"""Rescales the channels of a workload's network: same function, outliers of a given strength."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.workloads.outliers.draw import LEAST_STRENGTH, MOST_STRENGTH, octaves
from quantarena.bench.workloads.outliers.follow import Channels, follow, tensors
from quantarena.bench.workloads.outliers.sites import Site, SiteKind, sites_of
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Draw, draw_images
from quantarena.methods.core.trace.operations import QuantizableModule

MOST_CHANGED = 1e-4
"""How far planting may move the output of one call, relative to its largest value."""


@dataclass(frozen=True, slots=True)
class Planted:
    """What was planted.

    Attributes:
        sites: number of sites of each kind.
        channels: classes of channels that were rescaled.
        changed: how far the output of one call moved, relative to its largest value.
        digest: hash of the factors.
        possible: whether a larger strength rescales channels of this network.
    """

    sites: Mapping[SiteKind, int]
    channels: int
    changed: float
    digest: str
    possible: bool


def with_outliers(loaded: LoadedPipeline, info: WorkloadInfo) -> LoadedPipeline:
    """The pipeline with the outliers that its workload asks for; itself where it asks for none.

    The network is changed in place, and so is the hash, as another network has other keys.

    Raises:
        UserError: the network has no channel that can be rescaled, or the strength is so small
            that every factor is rounded to 1.
        BrokenModel: rescaling changed the function of the network.
    """
    if not info.outliers:
        return loaded
    call = first_call(loaded, info)
    planted = plant(loaded.denoiser, lambda: call(loaded.denoiser), info.outliers)
    if not planted.channels and planted.possible:
        raise UserError(
            f"{info.name}: outliers={info.outliers:g} plants nothing, as factors are powers of two "
            f"and all of them round to 1: take {LEAST_STRENGTH:g} or more, or leave outliers out"
        )
    if not planted.channels:
        raise UserError(
            f"{info.name}: {type(loaded.denoiser).__name__} has no channel that can be rescaled "
            "without changing its function: leave outliers out"
        )
    return replace(loaded, sha256=_sha256(f"{loaded.sha256}/outliers={planted.digest}"))


@torch.no_grad()
def plant(network: nn.Module, run: Callable[[], Any], strength: float) -> Planted:
    """Rescale channels of a network in place.

    Args:
        network: in fp32, in evaluation mode.
        run: runs the network once and returns its output.
        strength: see ``draw``.

    Raises:
        BrokenModel: the output of that run is another one afterwards.
    """
    before = [tensor.clone() for tensor in tensors(run())]
    channels = follow(network, run)
    sites = sites_of(channels)
    drawn: Counter[int] = Counter()  # a half is a site, and its channels are some of a stream's
    for site in sites:
        drawn.update(octaves(site, strength))
    drawn = Counter({found: octave for found, octave in drawn.items() if octave})
    _rescale(network, channels, drawn)
    changed = max(_moved(a, b) for a, b in zip(before, tensors(run()), strict=True))
    if not changed <= MOST_CHANGED:
        raise BrokenModel(
            f"outliers={strength:g} moves the output of {type(network).__name__} by {changed:.1e}: "
            "it uses its weights in a way that was not seen, leave outliers out"
        )
    kinds = Counter(site.kind for site in sites if _planted(site, drawn))
    possible = any(octaves(site, MOST_STRENGTH) for site in sites)
    return Planted(kinds, len(drawn), changed, _sha256(str(sorted(drawn.items()))), possible)


def first_call(loaded: LoadedPipeline, info: WorkloadInfo) -> Callable[[nn.Module], Any]:
    """The sampler's first call of the network, to be made again."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Seen

    handle = loaded.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        draw_images(loaded, info, Draw("calibrate", 1, 0, info.steps, 1))
    except _Seen:
        pass
    finally:
        handle.remove()
    args, kwargs = seen[0]
    return lambda network: network(*args, **kwargs)


class _Seen(Exception):
    """Ends a drawing when the network is called."""


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _planted(site: Site, drawn: Mapping[int, int]) -> bool:
    return any(found in drawn for found in site.classes)


def _moved(before: Tensor, after: Tensor) -> float:
    top = before.abs().max().clamp(min=1e-30)
    return float((before - after).abs().max() / top)


def _rescale(network: nn.Module, channels: Channels, drawn: Mapping[int, int]) -> None:
    def factors(numbers: Tensor) -> Tensor:
        found = (channels.ties.find(number) for number in numbers.tolist())
        return torch.tensor([2.0 ** (sign * drawn.get(root, 0)) for root, sign in found])

    for path, numbers in channels.made.items():
        gains = torch.tensor([number in channels.rules.gains for number in numbers.tolist()])
        totals = numbers.clone()
        totals[gains] = torch.tensor(
            [channels.rules.gains[number] for number in numbers[gains].tolist()], dtype=torch.int32
        )
        _scale_output(network.get_submodule(path), factors(totals), gains)
    for path, numbers in channels.read.items():
        if len(numbers):
            _scale_input(network.get_submodule(path), factors(numbers))


def _scale_output(module: nn.Module, factor: Tensor, gains: Tensor) -> None:
    """Multiply what a layer or norm makes; of the ``gains`` g, multiply ``1 + g``."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    weight.data.mul_(factor.reshape(-1, *[1] * (weight.dim() - 1)))
    if isinstance(bias, Tensor):
        one = gains.to(bias.dtype)
        bias.data.copy_(torch.where(factor == 1, bias, (bias + one) * factor - one))


def _scale_input(layer: nn.Module, factor: Tensor) -> None:
    """Divide the weights that read each channel."""
    assert isinstance(layer, QuantizableModule)
    groups = getattr(layer, "groups", 1)
    inverse = factor.reciprocal().reshape(groups, 1, -1)
    weight = layer.weight.data.reshape(groups, -1, len(factor) // groups, *layer.weight.shape[2:])
    layer.weight.data.copy_(
        (weight * inverse.reshape(*inverse.shape, *[1] * (weight.dim() - 3))).reshape(
            layer.weight.shape
        )
    )
