"""Closeness to full precision inside the sampler: noise errors by call, and the last latents."""

from torch import Tensor

from quantarena.bench.metrics.bootstrap import Array
from quantarena.bench.metrics.fidelity.last_latents import latent_mse
from quantarena.bench.metrics.fidelity.noise_error import predictions, sqnr
from quantarena.bench.metrics.names import LATENT, SQNR
from quantarena.bench.scores import CURVE
from quantarena.bench.stages.probe import Probe
from quantarena.methods.core.packed.pack import PackedModel


def closeness(
    packed: PackedModel, seen: Probe, fp_last: Tensor | None, last: Tensor | None
) -> tuple[dict[str, Array | str], dict[str, Array]]:
    """Closeness to full precision inside the sampler.

    Args:
        packed: the cell's network.
        seen: full precision's calls and answers.
        fp_last: full precision's last latents.
        last: the cell's.

    Returns:
        By metric, values of the first images or why there are none; and the curve by sampler
        call, (S, images) in dB, under ``curve:noise-sqnr``.
    """
    found: dict[str, Array | str] = {}
    curve: dict[str, Array] = {}
    try:
        answers = predictions(packed.module, seen.recorded, packed.clock.at)
        by_call = sqnr(seen.predictions, answers, seen.recorded.halves)
        found[SQNR], curve[CURVE + SQNR] = by_call.mean(0), by_call
    except ValueError as error:
        found[SQNR] = str(error)
    found[LATENT] = "the sampler does not say what its steps return"
    found |= latent_distance(fp_last, last)
    return found, curve


def latent_distance(fp_last: Tensor | None, last: Tensor | None) -> dict[str, Array]:
    """``latent_mse`` by its name; nothing where a sampler could not be watched."""
    if fp_last is None or last is None:
        return {}
    return {LATENT: latent_mse(fp_last, last)}
