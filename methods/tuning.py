"""Personalisation: tuning a network to a subject, in full precision or on packed codes.

The harness's door to ``techniques.personalise``: what can be asked for, the network that learns,
and the rates that it learns at.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from quantarena.methods import hyper_parameters
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.personalise.network import (
    Make,
    TunedNetwork,
    learning_branch,
    learning_gains,
    quantize_in_place,
    unpack_in_place,
)
from quantarena.methods.techniques.personalise.tune import Loss, tune

__all__ = ["RATES", "Approach", "Loss", "Recipe", "TunedNetwork", "from_float", "from_packed"]


class Approach(StrEnum):
    """What learns."""

    FULL = "full"
    LORA = "lora"
    PEQA = "peqa"
    TUNEQDM = "tuneqdm"

    @property
    def packs(self) -> bool:
        """Whether weights are packed codes that never change."""
        return self is not Approach.FULL

    @property
    def name_for_readers(self) -> str:
        """Name on boards and cards."""
        return _TITLES[self][0]

    @property
    def paper(self) -> str:
        """The paper that it follows; empty for plain fine-tuning."""
        return _TITLES[self][1]


_TITLES = {
    Approach.FULL: ("full fine-tuning", ""),
    Approach.LORA: ("LoRA on packed codes", "arXiv:2305.14314"),
    Approach.PEQA: ("PEQA", "arXiv:2305.14152"),
    Approach.TUNEQDM: ("TuneQDM", "arXiv:2401.04339"),
}
RATES: Mapping[Approach, float] = {
    Approach.FULL: 3e-4,
    Approach.LORA: 6e-3,
    Approach.PEQA: 2e-2,
    Approach.TUNEQDM: 2e-2,
}
"""Learning rates; docs/experiments/personalise.py chose them on a subject that no board shows."""
_DECAY = 1e-2
"""AdamW's own weight decay. Gains have none: it would draw them to 0, and they start at 1."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is tuned.

    Attributes:
        approach: what learns.
        experts: pairs of gains of TuneQDM, each for a range of timesteps; PEQA has one.
        rank: of LoRA's branches.
        updates: steps of Adam.
        accumulate: batches of one image whose gradients make one step.
        lr: learning rate, which falls to 0; None for that of ``RATES``.
        recompute: compute activations twice and hold fewer of them.
        published: learn at TuneQDM's own constant rates instead, see ``as_published``.
    """

    approach: Approach = Approach.TUNEQDM
    experts: int = 4
    rank: int = 4
    updates: int = 100
    accumulate: int = 4
    lr: float | None = None
    recompute: bool = False
    published: bool = False

    @classmethod
    def as_published(cls, experts: int = 4, *, recompute: bool = False) -> "Recipe":
        """TuneQDM at its own length, batch and rates, as its release tunes Stable Diffusion."""
        paper = hyper_parameters.TUNE_QDM
        return cls(
            Approach.TUNEQDM,
            experts,
            updates=paper.updates,
            accumulate=paper.batch,
            recompute=recompute,
            published=True,
        )

    @property
    def pairs(self) -> int:
        """Pairs of gains of each layer."""
        return self.experts if self.approach is Approach.TUNEQDM else 1

    @property
    def rate(self) -> float:
        """The learning rate: the paper's, its own, or that of its approach."""
        if self.published:
            return hyper_parameters.TUNE_QDM.groups["gain_in"].lr
        return RATES[self.approach] if self.lr is None else self.lr

    def rates(self) -> dict[str, Group]:
        """The learning rate of each group of parameters."""
        if self.published:
            return dict(hyper_parameters.TUNE_QDM.groups)
        gain = Group(self.rate, Decay.LINEAR, relative=True)
        whole = Group(self.rate, Decay.LINEAR, weight_decay=_DECAY)
        return {"weight": whole, "lora": whole, "gain_in": gain, "gain_out": gain}

    def run(
        self,
        network: TunedNetwork,
        loss: Loss,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[float]:
        """Tune; see ``techniques.personalise.tune``.

        Raises:
            UserError: the network cannot recompute activations, or the loss is not finite.
        """
        with _recomputing(network.module, self.recompute):
            return tune(
                network,
                loss,
                self.rates(),
                updates=self.updates,
                accumulate=self.accumulate,
                progress=progress,
            )


@contextmanager
def _recomputing(module: Any, on: bool) -> Iterator[None]:
    """Let a network of diffusers compute the activations of its blocks again on the way back."""
    if not on:
        yield
        return
    try:
        module.enable_gradient_checkpointing()
    except (AttributeError, ValueError):
        raise UserError(
            f"{type(module).__name__} cannot compute activations again: leave --recompute out"
        ) from None
    try:
        yield
    finally:
        module.disable_gradient_checkpointing()


def from_float(
    module: nn.Module, widths: Mapping[str, Bits], recipe: Recipe, horizon: int
) -> TunedNetwork:
    """A float network made ready to learn; it is changed, and its float weights may go.

    Args:
        module: the network.
        widths: bits by module path; only weights may be quantized.
        recipe: how it is tuned.
        horizon: timesteps that the network was trained with.

    Raises:
        UserError: activations are to be quantized.
    """
    tuned = TunedNetwork(module, {}, recipe.pairs, horizon)
    if not recipe.approach.packs:
        module.requires_grad_(True)
        return tuned
    quantized = [bits for bits in widths.values() if not bits.is_fp]
    if not quantized or any(bits.act != FP_WIDTH for bits in quantized):
        raise UserError("tuning takes weight-only bits, such as w4a16: inputs are not quantized")
    tuned.layers = quantize_in_place(module, widths, _make(recipe, tuned))
    return tuned


def from_packed(packed: PackedModel, recipe: Recipe, horizon: int) -> TunedNetwork:
    """A packed network made ready to learn; it is used up.

    Raises:
        UserError: it is not weight-only, or the recipe changes float weights.
    """
    if not recipe.approach.packs:
        raise UserError("the model is packed: it has no float weights to fine-tune")
    tuned = TunedNetwork(packed.module, {}, recipe.pairs, horizon)
    tuned.layers = unpack_in_place(packed, _make(recipe, tuned))
    return tuned


def _make(recipe: Recipe, tuned: TunedNetwork) -> Make:
    if recipe.approach is Approach.LORA:
        return learning_branch(recipe.rank)
    inputs = recipe.approach is Approach.TUNEQDM
    return learning_gains(tuned.moment, recipe.pairs, inputs=inputs)
