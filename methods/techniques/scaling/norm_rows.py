"""Finds which rows of a linear layer make the shift and the gain of a norm's output.

The network is run with the outputs of the norm and of that linear replaced by known values; what
the readers of the norm receive then tells the rows.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.visits import on_host


@dataclass(frozen=True, slots=True)
class NormSite:
    """A norm with the layers that read its output.

    Attributes:
        norm: module path of the norm.
        readers: paths of the layers that read the norm's output, all pointwise.
        modulation: path of the linear that makes shift and gain between norm and readers; None
            where the norm has only its own weight and bias.
        shift: first row of that linear that makes the shift, and the row after the last.
        gain: first row that makes the gain, and the row after the last; the output of these rows is
            added to 1.
    """

    norm: str
    readers: tuple[str, ...]
    modulation: str | None = None
    shift: tuple[int, int] = (0, 0)
    gain: tuple[int, int] = (0, 0)


@torch.no_grad()
def with_rows(model: nn.Module, sites: list[NormSite], probe: CalibrationSet) -> list[NormSite]:
    """Add the rows of its modulation to every site; drop sites where they cannot be found."""
    zero = _arrivals(model, sites, probe, value=0.0, counted=True)
    one = _arrivals(model, sites, probe, value=1.0, counted=True)
    order = _arrivals(model, sites, probe, value=None, counted=False)
    complete = []
    for site in sites:
        shift, gain = _common(site, zero), _common(site, one)
        channels = _common(site, order)
        if shift is None or gain is None or channels is None:
            continue
        if not torch.equal(channels, torch.arange(len(channels)).to(channels)):
            continue
        gain = gain - shift - 1
        if site.modulation is None:
            if not bool(shift.any()) and not bool(gain.any()):
                complete.append(site)
            continue
        rows = _rows(shift), _rows(gain)
        if rows[0] is not None and rows[1] is not None:
            complete.append(NormSite(site.norm, site.readers, site.modulation, rows[0], rows[1]))
    return complete


def _arrivals(
    model: nn.Module,
    sites: list[NormSite],
    probe: CalibrationSet,
    value: float | None,
    *,
    counted: bool,
) -> dict[str, Tensor]:
    """Inputs of all readers while norms and modulations output known values, channels last.

    Args:
        model: full-precision network.
        sites: sites with their modulations.
        probe: points to run.
        value: output of every norm; None for the index of each channel.
        counted: let modulations output 1, 2, 3 ... by row; else 0.
    """
    inputs: dict[str, Tensor] = {}

    def norm(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if value is not None:
            return torch.full_like(output, value)
        axis = 1 if isinstance(module, nn.GroupNorm) else output.dim() - 1
        count = torch.arange(output.shape[axis], dtype=output.dtype, device=output.device)
        return count.reshape(-1, *[1] * (output.dim() - 1 - axis)).expand_as(output).clone()

    def modulation(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = output.shape[-1]
        count = torch.arange(1, rows + 1, dtype=output.dtype, device=output.device)
        return (count * float(counted)).expand_as(output).clone()

    def reader(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            inputs[path] = x if isinstance(module, nn.Linear) else x.movedim(1, -1)

        return note

    with ExitStack() as stack:
        modulations = {site.modulation for site in sites} - {None}
        hooks = [(site.norm, norm) for site in sites]
        hooks += [(path, modulation) for path in modulations if path is not None]
        for path, hook in hooks:
            handle = model.get_submodule(path).register_forward_hook(hook)
            stack.callback(handle.remove)
        for path in (path for site in sites for path in site.readers):
            handle = model.get_submodule(path).register_forward_pre_hook(reader(path))
            stack.callback(handle.remove)
        stack.enter_context(on_host())
        probe.call(model)
    return inputs


def _common(site: NormSite, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The vector that all readers receive at all positions, (K,); None if these differ."""
    vector = inputs[site.readers[0]].flatten(0, -2)[0]
    for path in site.readers:
        x = inputs[path]
        if x.shape[-1] != len(vector) or not torch.equal(x, vector.expand_as(x)):
            return None
    return vector


def _rows(counted: Tensor) -> tuple[int, int] | None:
    """The consecutive rows with these numbers; None where they are not consecutive."""
    first = int(counted[0])
    wanted = torch.arange(first, first + len(counted)).to(counted)
    return (first - 1, first - 1 + len(counted)) if torch.equal(counted, wanted) else None
