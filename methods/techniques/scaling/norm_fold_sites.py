"""Folds channel-wise quantizers into the norms of a model, and checks that nothing else changed."""

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.scaling.norm_fold import Affine, fold_adaln, fold_norm
from quantarena.methods.techniques.scaling.norm_rows import NormSite
from quantarena.methods.techniques.scaling.norm_sites import NORMS, PROBED

_MOST_CHANGED = 1e-3
"""How far folding may move the full-precision output, relative to its largest value."""


def fold_site(
    model: QuantizedModel, site: NormSite, scale: Tensor, zero_point: Tensor, bits: int
) -> QuantParams:
    """Fold the channel-wise quantizer of the readers' input into the norm, in place.

    The readers' weights change, so their ranges must be searched again. Their input quantizers must
    be given the returned parameters.

    Args:
        model: the network.
        site: one of ``norm_sites``.
        scale: channel-wise scale, (K,).
        zero_point: channel-wise zero point, (K,) integers, which may lie outside the codes.
        bits: width of the readers' inputs.

    Returns:
        Scale and zero point of the layer-wise quantizer.
    """
    norm = model.module.get_submodule(site.norm)
    readers = [model.layers[path] for path in site.readers]
    affine = [Affine(layer.weight.detach(), layer.bias) for layer in readers]
    if site.modulation is None:
        assert isinstance(norm, NORMS)
        norm_affine = None if norm.weight is None else Affine(norm.weight, norm.bias)
        folded = fold_norm(norm_affine, affine, scale, zero_point, codes=2**bits)
        _set_affine(norm, folded.producer)
    else:
        linear = model.module.get_submodule(site.modulation)
        assert isinstance(linear, QuantLayer | nn.Linear)
        modulation = Affine(linear.weight.detach(), linear.bias)
        folded = fold_adaln(
            modulation,
            slice(*site.shift),
            slice(*site.gain),
            affine,
            scale,
            zero_point,
            codes=2**bits,
        )
        _set_affine(linear, folded.producer)
    for layer, changed in zip(readers, folded.consumers, strict=True):
        _set_affine(layer, changed)
    return QuantParams(folded.scale, folded.zero_point, bits)


@torch.no_grad()
def check_folds(model: QuantizedModel, points: CalibrationSet) -> float:
    """Measure how far folding moved the full-precision output, relative to its largest value.

    Raises:
        Unsupported: further than rounding explains: rows of a modulation are used elsewhere too.
    """
    probe = points.rows(slice(0, PROBED))
    with model.using(weights=False, acts=False):
        ours, theirs = model.run(probe), probe.call(model.original)
    moved = float((ours - theirs).abs().max() / theirs.abs().max())
    if not moved <= _MOST_CHANGED:
        raise Unsupported(
            f"folding into the norms moves the network's own output by {moved:.1e}: what makes "
            "shift and gain of a norm is used elsewhere too"
        )
    return moved


def _set_affine(module: nn.Module, changed: Affine) -> None:
    """Replace weight and bias of a module."""
    for name, value in zip(("weight", "bias"), changed, strict=True):
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))
