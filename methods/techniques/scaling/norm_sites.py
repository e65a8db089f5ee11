"""Finds norms whose output is read by quantized layers alone, so that a quantizer can be folded in.

A site is a LayerNorm or GroupNorm whose output, reshaped or modulated by shift and gain, is read by
pointwise layers only. A nonlinearity, a sum with another stream or any other reader excludes the
norm, because then the readers cannot undo ``norm_fold``.
"""

from collections.abc import Collection, Iterable
from itertools import combinations

from torch import nn

from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.operation import Op, OpKind
from quantarena.methods.core.trace.operations import (
    OperationRecorder,
    QuantizableModule,
    record_operations,
)
from quantarena.methods.core.trace.role_reader import pointwise
from quantarena.methods.techniques.scaling.norm_rows import NormSite, with_rows

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
"""Operations that keep every value; ``__get__`` is a property such as ``mT``."""
_VECTOR = frozenset({OpKind.OTHER, OpKind.ADD, OpKind.MUL})
"""Operations allowed between the linear that makes shift and gain and the norm's output."""
PROBED = 2
"""Number of points that the network is run on."""


def norm_sites(
    model: nn.Module, layers: Collection[str], points: CalibrationSet
) -> tuple[NormSite, ...]:
    """Find every norm whose output only ``layers`` read, in execution order.

    Args:
        model: full-precision network.
        layers: paths of the layers that will be quantized.
        points: calibration points, of which two run, four times.
    """
    probe = points.rows(slice(0, PROBED))
    with record_operations(model, lambda *_: None) as recorder:
        probe.call(model)
    candidates = _Topology(model, recorder, layers).sites()
    sites = with_rows(model, candidates, probe) if candidates else []
    clashing = {site for pair in combinations(sites, 2) if _clash(*pair) for site in pair}
    return tuple(site for site in sites if site not in clashing)


class _Topology:
    """The recorded operations as a graph, in which sites are searched.

    The rows of a site's modulation are not known yet.
    """

    def __init__(
        self, model: nn.Module, recorder: OperationRecorder, layers: Collection[str]
    ) -> None:
        self.model, self.recorder, self.wanted = model, recorder, layers
        self.ops = recorder.ops
        self.after: dict[int, list[int]] = {}
        self.runs: dict[str, int] = {}
        for index, op in enumerate(self.ops):
            if op.kind is not OpKind.LAYER and isinstance(self._module(op), QuantizableModule):
                continue  # the product inside a layer: the layer has an operation of its own
            for source in op.inputs:
                self.after.setdefault(source, []).append(index)
            if op.kind is OpKind.LAYER:
                self.runs[op.name] = self.runs.get(op.name, 0) + 1

    def sites(self) -> list[NormSite]:
        sites = []
        for index, op in enumerate(self.ops):
            if op.kind is OpKind.NORM and isinstance(self._module(op), NORMS):
                path = self.recorder.calls[op.call]
                once = self.recorder.calls.count(path) == 1
                site = self._site(path, index) if once else None
                if site is not None:
                    sites.append(site)
        return sites

    def _module(self, op: Op) -> nn.Module:
        """The module that ran the operation."""
        path = self.recorder.calls[op.call] if op.call >= 0 else ""
        return self.model.get_submodule(path)

    def _site(self, path: str, start: int) -> NormSite | None:
        """The site of one norm; None where anything but the given layers reads it."""
        readers: list[str] = []
        makers: set[str] = set()
        waiting, visited = [start], {start}
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
                    sources = self._makers(i for i in op.inputs if i != here)
                    if sources is None:
                        return None
                    makers |= sources
                elif op.kind is not OpKind.OTHER or op.name not in _MOVES:
                    return None
                if index not in visited:
                    visited.add(index)
                    waiting.append(index)
        if not readers or len(makers) > 1 or any(self.runs[name] > 1 for name in makers):
            return None
        return NormSite(path, tuple(dict.fromkeys(readers)), next(iter(makers), None))

    def _reads(self, op: Op) -> bool:
        """Whether the layer may read a site: wanted, pointwise, and run once."""
        module = self.model.get_submodule(op.name)
        known = isinstance(module, QuantizableModule) and pointwise(module)
        return known and op.name in self.wanted and self.runs[op.name] == 1

    def _makers(self, others: Iterable[int]) -> set[str] | None:
        """Layers that an operand is computed from; None where other operations than moves, sums and
        products lie in between.
        """
        makers: set[str] = set()
        waiting = list(others)
        while waiting:
            op = self.ops[waiting.pop()]
            if op.kind is OpKind.LAYER:
                makers.add(op.name)
            elif op.kind in _VECTOR:
                waiting += op.inputs
            else:
                return None
        return makers


def _clash(one: NormSite, other: NormSite) -> bool:
    """Whether two sites use the same rows of one linear."""
    if one.modulation is None or one.modulation != other.modulation:
        return False
    pairs = ((a, b) for a in (one.shift, one.gain) for b in (other.shift, other.gain))
    return any(a[0] < b[1] and b[0] < a[1] for a, b in pairs)
