"""Where a norm's output goes to quantized layers alone, and folding a quantizer into it there.

A site is a LayerNorm or GroupNorm whose result, reshaped or modulated by shift and gain, is read by
pointwise layers only. A nonlinearity, a sum with another stream or any other reader ends it, for
then the readers cannot undo ``norm_fold``. The topology is read from one recorded pass; which rows
of a linear make shift and gain is read from numbers: the outputs of the norm and of that linear are
replaced by known values, and what arrives at the readers tells the rows.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.operations import (
    Op,
    OpKind,
    QuantizableModule,
    Recorder,
    recording,
)
from quantarena.methods.core.trace.roles import pointwise
from quantarena.methods.techniques.scaling.norm_fold import Affine, fold_adaln, fold_norm

NORMS = (nn.LayerNorm, nn.GroupNorm)
_MOVES = frozenset(
    {
        "view",
        "reshape",
        "transpose",
        "permute",
        "contiguous",
        "flatten",
        "unflatten",
        "to",
        "float",
        "clone",
        "detach",
        "dropout",
        "squeeze",
        "unsqueeze",
        "type_as",
        "movedim",
        "__get__",
    }
)
"""Operations that leave every value as it is; ``__get__`` is a property such as ``mT``."""
_VECTOR = frozenset({OpKind.OTHER, OpKind.ADD, OpKind.MUL})
"""What may lie between the linear that makes shift and gain and where they are applied."""
_PROBED = 2
"""Points that are looked at."""
_MOST_CHANGED = 1e-3
"""How far folding may move the full-precision output, relative to its largest value."""


@dataclass(frozen=True, slots=True)
class NormSite:
    """A norm and all that reads it.

    Attributes:
        norm: module path.
        readers: paths of the layers that read its output, all pointwise.
        modulation: path of the linear that makes shift and gain between norm and readers; None
            where the norm's own weight and bias are all.
        shift: first row of that linear that makes the shift, and the one after the last.
        gain: of the gain, likewise; what those rows make is added to 1.
    """

    norm: str
    readers: tuple[str, ...]
    modulation: str | None = None
    shift: tuple[int, int] = (0, 0)
    gain: tuple[int, int] = (0, 0)


def norm_sites(
    model: nn.Module, layers: Collection[str], points: CalibrationSet
) -> tuple[NormSite, ...]:
    """Every norm whose output only ``layers`` read, in execution order.

    Args:
        model: in full precision.
        layers: paths of the layers that will be quantized.
        points: two of them run, four times.
    """
    probe = points.rows(slice(0, _PROBED))
    with recording(model, lambda *_: None) as recorder:
        probe.call(model)
    found = _Topology(model, recorder, layers).sites()
    sites = _with_rows(model, found, probe) if found else []
    clashing = {site for pair in combinations(sites, 2) if _clash(*pair) for site in pair}
    return tuple(site for site in sites if site not in clashing)


class _Topology:
    """Sites by what follows what; rows of the modulation are not known yet."""

    def __init__(self, model: nn.Module, recorder: Recorder, layers: Collection[str]) -> None:
        self.model, self.recorder, self.wanted = model, recorder, layers
        self.ops = recorder.ops
        self.after: dict[int, list[int]] = {}
        self.runs: dict[str, int] = {}
        for index, op in enumerate(self.ops):
            if op.kind is not OpKind.LAYER and isinstance(self._module(op), QuantizableModule):
                continue  # the product inside a layer, which the layer itself stands for
            for source in op.inputs:
                self.after.setdefault(source, []).append(index)
            if op.kind is OpKind.LAYER:
                self.runs[op.name] = self.runs.get(op.name, 0) + 1

    def sites(self) -> list[NormSite]:
        found = []
        for index, op in enumerate(self.ops):
            if op.kind is OpKind.NORM and isinstance(self._module(op), NORMS):
                path = self.recorder.calls[op.call]
                once = self.recorder.calls.count(path) == 1
                site = self._site(path, index) if once else None
                if site is not None:
                    found.append(site)
        return found

    def _module(self, op: Op) -> nn.Module:
        """The module in whose call it happened."""
        path = self.recorder.calls[op.call] if op.call >= 0 else ""
        return self.model.get_submodule(path)

    def _site(self, path: str, start: int) -> NormSite | None:
        """The site of one norm; None where anything but wanted layers reads it."""
        readers: list[str] = []
        makers: set[str] = set()
        waiting, seen = [start], {start}
        while waiting:
            here = waiting.pop()
            for index in self.after.get(here, ()):
                op = self.ops[index]
                if op.kind is OpKind.LAYER:
                    if not self._reads(op):
                        return None
                    readers.append(op.name)
                    continue
                if op.kind in {OpKind.ADD, OpKind.MUL}:
                    made = self._makers(i for i in op.inputs if i != here)
                    if made is None:
                        return None
                    makers |= made
                elif op.kind is not OpKind.OTHER or op.name not in _MOVES:
                    return None
                if index not in seen:
                    seen.add(index)
                    waiting.append(index)
        if not readers or len(makers) > 1 or any(self.runs[name] > 1 for name in makers):
            return None
        return NormSite(path, tuple(dict.fromkeys(readers)), next(iter(makers), None))

    def _reads(self, op: Op) -> bool:
        module = self.model.get_submodule(op.name)
        known = isinstance(module, QuantizableModule) and pointwise(module)
        return known and op.name in self.wanted and self.runs[op.name] == 1

    def _makers(self, others: Iterable[int]) -> set[str] | None:
        """The layers that make an operand, by moves, sums and products alone; None if not so."""
        made: set[str] = set()
        waiting = list(others)
        while waiting:
            op = self.ops[waiting.pop()]
            if op.kind is OpKind.LAYER:
                made.add(op.name)
            elif op.kind in _VECTOR:
                waiting += op.inputs
            else:
                return None
        return made


@torch.no_grad()
def _with_rows(model: nn.Module, sites: list[NormSite], probe: CalibrationSet) -> list[NormSite]:
    """Sites with the rows of their modulation, without those whose numbers are not as they seem."""
    zero = _arrivals(model, sites, probe, value=0.0, counted=True)
    one = _arrivals(model, sites, probe, value=1.0, counted=True)
    order = _arrivals(model, sites, probe, value=None, counted=False)
    found = []
    for site in sites:
        shift, gain = _same(site, zero), _same(site, one)
        channels = _same(site, order)
        if shift is None or gain is None or channels is None:
            continue
        if not torch.equal(channels, torch.arange(len(channels)).float()):
            continue
        gain = gain - shift - 1
        if site.modulation is None:
            if not bool(shift.any()) and not bool(gain.any()):
                found.append(site)
            continue
        rows = _rows(shift), _rows(gain)
        if rows[0] is not None and rows[1] is not None:
            found.append(NormSite(site.norm, site.readers, site.modulation, rows[0], rows[1]))
    return found


def _arrivals(
    model: nn.Module,
    sites: list[NormSite],
    probe: CalibrationSet,
    value: float | None,
    *,
    counted: bool,
) -> dict[str, Tensor]:
    """What reaches every reader, channels last.

    Args:
        model: in full precision.
        sites: with their modulations.
        probe: to run on.
        value: what every norm gives; None for the number of each channel.
        counted: modulations give 1, 2, 3 ... by row; else 0.
    """
    arrived: dict[str, Tensor] = {}

    def norm(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if value is not None:
            return torch.full_like(output, value)
        axis = 1 if isinstance(module, nn.GroupNorm) else output.dim() - 1
        count = torch.arange(output.shape[axis], dtype=output.dtype)
        return count.reshape(-1, *[1] * (output.dim() - 1 - axis)).expand_as(output).clone()

    def modulation(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        count = torch.arange(1, output.shape[-1] + 1, dtype=output.dtype)
        return (count * float(counted)).expand_as(output).clone()

    def reader(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            arrived[path] = x if isinstance(module, nn.Linear) else x.movedim(1, -1)

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
        probe.call(model)
    return arrived


def _same(site: NormSite, arrived: Mapping[str, Tensor]) -> Tensor | None:
    """The one vector that reaches all readers at all places, (K,); None if they differ."""
    vector = arrived[site.readers[0]].flatten(0, -2)[0]
    for path in site.readers:
        x = arrived[path]
        if x.shape[-1] != len(vector) or not torch.equal(x, vector.expand_as(x)):
            return None
    return vector


def _rows(counted: Tensor) -> tuple[int, int] | None:
    """The consecutive rows that gave these numbers; None where they are none."""
    first = int(counted[0])
    wanted = torch.arange(first, first + len(counted), dtype=counted.dtype)
    return (first - 1, first - 1 + len(counted)) if torch.equal(counted, wanted) else None


def _clash(one: NormSite, other: NormSite) -> bool:
    """Whether two sites want the same rows of one linear."""
    if one.modulation is None or one.modulation != other.modulation:
        return False
    pairs = ((a, b) for a in (one.shift, one.gain) for b in (other.shift, other.gain))
    return any(a[0] < b[1] and b[0] < a[1] for a, b in pairs)


def fold_site(
    model: QuantizedModel, site: NormSite, scale: Tensor, zero_point: Tensor, bits: int
) -> QuantParams:
    """Fold a channel-wise quantizer of the readers' input; in place.

    The readers' weights change, so their ranges have to be found again; their input quantizers are
    to be given what is returned.

    Args:
        model: its module and layers.
        site: out of ``norm_sites``.
        scale: (K,).
        zero_point: (K,) integers; they may lie outside the codes, for the fold moves them in.
        bits: of the readers' inputs.

    Returns:
        Scale and zero point of the layer-wise quantizer.
    """
    norm = model.module.get_submodule(site.norm)
    readers = [model.layers[path] for path in site.readers]
    affine = [Affine(layer.weight.detach(), layer.bias) for layer in readers]
    if site.modulation is None:
        assert isinstance(norm, NORMS)
        own = None if norm.weight is None else Affine(norm.weight, norm.bias)
        folded = fold_norm(own, affine, scale, zero_point, codes=2**bits)
        _give(norm, folded.producer)
    else:
        linear = model.module.get_submodule(site.modulation)
        assert isinstance(linear, QuantLayer | nn.Linear)
        made = Affine(linear.weight.detach(), linear.bias)
        folded = fold_adaln(
            made, slice(*site.shift), slice(*site.gain), affine, scale, zero_point, codes=2**bits
        )
        _give(linear, folded.producer)
    for layer, changed in zip(readers, folded.consumers, strict=True):
        _give(layer, changed)
    return QuantParams(folded.scale, folded.zero_point, bits)


@torch.no_grad()
def check_folds(model: QuantizedModel, points: CalibrationSet) -> float:
    """How far folding moved the full-precision output, relative to its largest value.

    Raises:
        Unsupported: further than rounding does: rows of a modulation are read elsewhere too.
    """
    probe = points.rows(slice(0, _PROBED))
    with model.using(weights=False, acts=False):
        ours, theirs = model.run(probe), probe.call(model.original)
    moved = float((ours - theirs).abs().max() / theirs.abs().max())
    if not moved <= _MOST_CHANGED:
        raise Unsupported(
            f"folding into the norms moves the network's own output by {moved:.1e}: what makes "
            "shift and gain of a norm is used elsewhere too"
        )
    return moved


def _give(module: nn.Module, changed: Affine) -> None:
    for name, value in zip(("weight", "bias"), changed, strict=True):
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))
