"""What each paper quantizes, role by role: the tables of policy ``published``.

Nothing but data. ``source`` says where a table was read: released code with its commit, the paper's
text, or our reading where neither says it. Positions such as "the first layer" count registration
order in the releases, in which the time-embedding MLP comes before the input convolution; so their
"first layer" is the first linear of the time embedding and not the input convolution. Widths that
an origin leaves to the request are left out here.
"""

from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.model.policy import (
    EIGHT,
    FLOAT,
    PUBLISHED,
    AttentionRule,
    Policy,
    Rule,
)
from quantarena.methods.core.trace.network import Role

_EIGHT_WEIGHT = Rule(weight=8)

PTQ4DM = Policy(
    PUBLISHED,
    roles={Role.OUTPUT: EIGHT},
    first={Role.TIME_EMBED: _EIGHT_WEIGHT},
    kinds={"conv1d": FLOAT},
    source="released code 180a4d1",
)
"""First linear of the time embedding and output convolution hold 8-bit weights, the latter's input
8 bits too; the input convolution has the requested bits. Only Conv2d and Linear are wrapped, so
Conv1d attention layers stay in floating point, as do the attention products. The release quantizes
outputs of layers, before the norm; here inputs are quantized, which integer kernels need.
"""

Q_DIFFUSION = Policy(
    PUBLISHED,
    attention=AttentionRule(operands=None, softmax=8),
    source="released code 715783d",
)
"""Every layer at the requested bits, first and last and time embedding included, and the attention
products with an 8-bit softmax (16 bits in its Stable Diffusion runs).
"""

EDA_DM = Policy(
    PUBLISHED,
    roles={Role.OUTPUT: Rule(weight=8, act=FP_WIDTH)},
    first={Role.TIME_EMBED: _EIGHT_WEIGHT},
    attention=AttentionRule(operands=None, softmax=8),
    source="released code 87302c0",
)
"""PTQ4DM's exceptions, but the last convolution's input is left in floating point: a switch meant
for quantized outputs turns off a quantized input. Conv1d layers and attention are quantized.
"""

DILATE_QUANT = Policy(
    PUBLISHED,
    attention=AttentionRule(operands=None, softmax=None),
    source="restatements of the paper; no released code was found",
)
"""No layer is skipped, as the authors ask of others; attention tensors have ranges for each call
and head. Whether the softmax has more bits than requested is not said: it has the requested.
"""

MPQ_DM = Policy(
    PUBLISHED,
    roles={
        Role.TIME_EMBED: EIGHT,
        Role.INPUT: EIGHT,
        Role.OUTPUT: EIGHT,
        Role.SHORTCUT: FLOAT,
        Role.DOWNSAMPLE: FLOAT,
    },
    kinds={"conv1d": FLOAT},
    source="released code 2b05dd7",
)
"""The first three layers (both of the time embedding, then the input convolution) and the last have
8 bits; shortcuts, downsampling, Conv1d attention layers and attention products stay in floating
point, as in EfficientDM which it extends.
"""

DGQ = Policy(
    PUBLISHED,
    roles={Role.INPUT: FLOAT, Role.OUTPUT: FLOAT},
    attention=AttentionRule(operands=None, softmax=None),
    source="released code f449f6a",
)
"""Input and output convolution in floating point, all else as requested; scores after softmax have
as many bits as activations, in logarithmic codes.
"""

SERIAL_PARALLEL = Policy(
    PUBLISHED,
    roles={
        Role.TIME_EMBED: FLOAT,
        Role.EMB_PROJ: FLOAT,
        Role.INPUT: EIGHT,
        Role.OUTPUT: EIGHT,
    },
    attention=AttentionRule(operands=None, softmax=8),
    source="our reading of arXiv:2412.06661; no released code was found",
)
"""Time layers are not quantized but replaced by tables for the sampler's timesteps; first and last
layer and softmax have 8 bits.
"""

TUNE_QDM = Policy(PUBLISHED, source="released code a5c3b90")
"""Weights of every layer at the requested bits, first and last included. Ask for w4a16: activations
and attention products are in floating point.
"""

REPQUANT = Policy(
    PUBLISHED,
    roles={Role.INPUT: Rule(act=8)},
    attention=AttentionRule(operands=None, softmax=None),
    source="released code of RepQ-ViT a160561; none of RepQuant was found",
)
"""Every layer as requested but for the patch embedding, whose input has 8 bits; operands of both
attention products too, norms and the softmax itself in floating point.
"""

SVDQUANT = Policy(
    PUBLISHED,
    roles=dict.fromkeys(
        (
            Role.INPUT,
            Role.OUTPUT,
            Role.TIME_EMBED,
            Role.CONTEXT,
            Role.EMB_PROJ,
            Role.ADALN,
            Role.SHORTCUT,
            Role.DOWNSAMPLE,
            Role.UPSAMPLE,
        ),
        FLOAT,
    ),
    source="released configurations of deepcompressor",
)
"""Embedders, adaptive norms, shortcuts, time projections, resampling, input and output stay in
floating point, and so do the attention products. The projections around a U-Net's attention do in
the release; they are 1x1 convolutions like others here and are quantized.
"""

VIDIT_Q = Policy(
    PUBLISHED,
    roles=dict.fromkeys(
        (Role.INPUT, Role.OUTPUT, Role.TIME_EMBED, Role.CONTEXT, Role.ADALN), FLOAT
    ),
    source="released code 44126bd",
)
"""Embedders of sample, time and condition, the linear that makes the blocks' shifts and gains
(``t_block``) and the final layer stay in floating point, as do the attention products.
"""
