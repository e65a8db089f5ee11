"""The hyper-parameters that each paper trains with: lengths, batches and learning rates.

This module holds only data, beside ``published``, which holds the widths. Adapters use these
numbers where the effort allows the published length (preset ``paper``); shorter runs have rates of
their own, see ``techniques.learn.schedule.paced``. ``source`` says where the numbers come from. A
rate is absolute unless its group is relative.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantarena.methods.techniques.learn.losses import RoundingTerm
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.learn.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Training:
    """What a paper trains with.

    Attributes:
        updates: optimiser steps; of each block where ``by_block``, else of the whole network.
        batch: rows of one step.
        groups: learning rates; keys out of ``param_groups.NAMES``.
        source: where the numbers come from.
        by_block: whether each block is trained on its own.
        rounding: weight of AdaRound's regulariser, where roundings learn.
        norm: exponent of the loss, see ``Schedule``.
    """

    updates: int
    batch: int
    groups: Mapping[str, Group]
    source: str
    by_block: bool = True
    rounding: float = 0.0
    norm: float = 2.0

    def schedule(self) -> Schedule:
        """The schedule of one block, exactly as published."""
        term = RoundingTerm(strength=self.rounding)
        return Schedule(self.updates, self.groups, self.batch, self.norm, term)


Q_DIFFUSION = Training(
    20_000, 32, {"rounding": Group(1e-3)}, "released code 715783d", rounding=0.01
)
Q_DIFFUSION_ACTS = Training(
    5_000, 32, {"act_scale": Group(4e-4, Decay.COSINE)}, "released code 715783d", norm=2.4
)
"""The second stage, after the weights."""

EDA_DM = Training(
    5_000,
    32,
    {"rounding": Group(0.5, Decay.COSINE), "act_scale": Group(5e-4, Decay.COSINE)},
    "released code 87302c0, settings of CIFAR below 8 bits",
)
EDA_DM_8_BITS = Training(
    5_000,
    32,
    {"rounding": Group(5e-2, Decay.COSINE), "act_scale": Group(1e-3, Decay.COSINE)},
    "released code 87302c0, settings of CIFAR at 8 bits",
)

DGQ = Training(20_000, 8, {"rounding": Group(1e-3)}, "released code f449f6a", rounding=0.01)

EFFICIENT_DM = Training(
    16_000,
    4,
    {
        "lora": Group(1 / 2500, Decay.LINEAR, relative=True),
        "weight_scale": Group(1e-6, Decay.LINEAR),
        "act_scale": Group(5e-4, Decay.LINEAR, most=0.01),
    },
    "released code 293e212, ImageNet with 100 sampler calls, two images with both halves",
    by_block=False,
)
EFFICIENT_DM_ZERO = Group(5e-4, Decay.LINEAR)
"""The activations' zero points, which the release trains beside their scales."""

TFMQ_DM = Training(20_000, 32, {"rounding": Group(1e-3)}, "released code d551eac", rounding=0.01)
"""Temporal blocks as all others. Stable Diffusion and ImageNet on one GPU have a batch of 8."""

PTQD = Training(10_000, 8, {"rounding": Group(1e-3)}, "released code 6b190f9", rounding=0.01)
PTQD_ACTS = Training(
    5_000, 16, {"act_scale": Group(4e-4, Decay.COSINE)}, "released code 6b190f9", norm=2.4
)
"""Of the quantizer underneath, BRECQ's there; the second stage comes after the weights."""

MPQ_DM = replace(EFFICIENT_DM, source="released code 2b05dd7, ImageNet with 20 sampler calls")
"""As EfficientDM, which MPQ-DM extends, but for zero points."""

DILATE_QUANT = Training(
    5_000,
    32,
    {
        "weight": Group(1e-4, Decay.COSINE),
        "weight_scale": Group(1e-4, Decay.COSINE, most=0.01),
        "act_scale": Group(1e-4, Decay.COSINE),
        "act_zero": Group(1e-4, Decay.COSINE),
    },
    "restatements of the paper; no released code was found",
)
"""Restated are 1e-4 for the quantizers and 1e-2 for the weights. The latter is half a 4-bit code a
step, 5,000 times: weights that learn at it leave their full-precision values, so they have the
quantizers' rate here. The paper quantizes every layer to the requested bits; where policy
``uniform`` has 8, a weight scale is 0.0005 to 0.001 on emoji-dit, and a step of 1e-4 carried one
through zero. So a step is at most a hundredth of the mean scale.
"""

TUNE_QDM = Training(
    400,
    1,
    {"gain_out": Group(3e-6), "gain_in": Group(3e-6)},
    "released code a5c3b90, to the images of a subject",
    by_block=False,
)
"""The release learns ``d_out`` with the weight's scale in it, so its rate is in the weight's unit.
For a gain relative to that scale it is 3e-6 divided by it, see ``Learnable``.
"""

QUEST_TIME = Training(
    24_000,
    2,
    {"weight": Group(1e-5), "act_scale": Group(1e-5)},
    "released code a357018, ImageNet with 20 sampler calls, 300 epochs of 4 batches each",
    by_block=False,
)
"""The first stage, after Q-Diffusion's weights: layers that bring the timestep in."""
QUEST_ATTENTION = Training(
    6_400,
    4,
    {"weight": Group(1e-5), "act_scale": Group(1e-4)},
    "released code a357018, ImageNet with 20 sampler calls, 20 epochs of 16 batches each",
    by_block=False,
)
"""The second stage: layers around attention, and all other activation scales."""

SVDQUANT_RANK, SVDQUANT_GRID = 32, 20
"""Rank of the branch and number of smoothing exponents tried; deepcompressor's configurations."""
