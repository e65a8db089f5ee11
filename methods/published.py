"""The widths that each paper gives to each role of layer: the tables of policy ``published``.

This module holds only data. ``source`` says where a table comes from: released code with its
commit, the paper's text, or our reading where neither says it. Positions such as "the first layer"
follow the registration order in the releases, where the time-embedding MLP comes before the input
convolution. Their "first layer" is therefore the first linear of the time embedding, not the input
convolution. A table leaves out the widths that its source leaves to the request.
"""

from dataclasses import replace

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
"""The first linear of the time embedding and the output convolution have 8-bit weights, and the
latter's input has 8 bits too; the input convolution has the requested bits. The release wraps only
Conv2d and Linear, so Conv1d attention layers stay in floating point, as do the attention products.
The release quantizes the outputs of layers, before the norm; here inputs are quantized, because
integer kernels need that.
"""

Q_DIFFUSION = Policy(
    PUBLISHED,
    attention=AttentionRule(operands=None, softmax=8),
    source="released code 715783d",
)
"""Every layer has the requested bits, including the first, the last and the time embedding. The
attention products have an 8-bit softmax (16 bits in the paper's Stable Diffusion runs).
"""

EDA_DM = Policy(
    PUBLISHED,
    roles={Role.OUTPUT: Rule(weight=8, act=FP_WIDTH)},
    first={Role.TIME_EMBED: _EIGHT_WEIGHT},
    attention=AttentionRule(operands=None, softmax=8),
    source="released code 87302c0",
)
"""The exceptions are those of PTQ4DM, but the last convolution's input stays in floating point: a
switch that was meant for quantized outputs turns off a quantized input. Conv1d layers and
attention products are quantized.
"""

DILATE_QUANT = Policy(
    PUBLISHED,
    attention=AttentionRule(operands=None, softmax=None),
    source="restatements of the paper; no released code was found",
)
"""No layer is skipped, which is what the authors ask of other methods. Attention tensors have
ranges for each call and head. The sources do not say whether the softmax has more bits than
requested, so it has the requested bits.
"""

EFFICIENT_DM = Policy(
    PUBLISHED,
    roles={
        Role.TIME_EMBED: EIGHT,
        Role.INPUT: EIGHT,
        Role.OUTPUT: EIGHT,
        Role.SHORTCUT: FLOAT,
        Role.DOWNSAMPLE: FLOAT,
    },
    kinds={"conv1d": FLOAT},
    source="released code 293e212",
)
"""The first three layers (both of the time embedding, then the input convolution) and the last
layer have 8 bits. Shortcuts, downsampling, Conv1d attention layers and attention products stay in
floating point.
"""

MPQ_DM = replace(EFFICIENT_DM, source="released code 2b05dd7")
"""As in EfficientDM, which MPQ-DM extends."""

QUEST = Policy(
    PUBLISHED,
    roles={Role.INPUT: Rule(act=8), Role.OUTPUT: Rule(act=8)},
    attention=AttentionRule(operands=None, softmax=None),
    source="released code a357018",
)
"""Every layer has the requested bits, but the inputs of the input and output convolutions have 8.
Queries, keys, values and the softmax have the requested bits (16 bits in the softmax of the paper's
Stable Diffusion runs).
"""

DGQ = Policy(
    PUBLISHED,
    roles={Role.INPUT: FLOAT, Role.OUTPUT: FLOAT},
    attention=AttentionRule(operands=None, softmax=None),
    source="released code f449f6a",
)
"""The input and output convolutions stay in floating point; every other layer has the requested
bits. Scores after softmax have as many bits as activations, in logarithmic codes.
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
"""Time layers are not quantized but replaced by tables for the sampler's timesteps. The first
layer, the last layer and the softmax have 8 bits.
"""

TUNE_QDM = Policy(PUBLISHED, source="released code a5c3b90")
"""The weights of every layer have the requested bits, including the first and the last.
Activations and attention products stay in floating point, so the bits to request are such as
w4a16.
"""

REPQUANT = Policy(
    PUBLISHED,
    roles={Role.INPUT: Rule(act=8)},
    attention=AttentionRule(operands=None, softmax=None),
    source="released code of RepQ-ViT a160561; none of RepQuant was found",
)
"""Every layer has the requested bits, except that the input of the patch embedding has 8. The
operands of both attention products have the requested bits too; norms and the softmax itself stay
in floating point.
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
floating point, and so do the attention products. In the release the projections around a U-Net's
attention do, too; here they are 1x1 convolutions like any others and are quantized.
"""

VIDIT_Q = Policy(
    PUBLISHED,
    roles=dict.fromkeys(
        (Role.INPUT, Role.OUTPUT, Role.TIME_EMBED, Role.CONTEXT, Role.ADALN), FLOAT
    ),
    source="released code 44126bd",
)
"""The embedders of sample, time and condition, the linear that computes the blocks' shifts and
gains (``t_block``) and the final layer stay in floating point, as do the attention products.
"""

TFMQ_DM = Policy(
    PUBLISHED,
    roles={
        Role.INPUT: FLOAT,
        Role.OUTPUT: FLOAT,
        Role.SHORTCUT: FLOAT,
        Role.DOWNSAMPLE: FLOAT,
        Role.TIME_EMBED: Rule(act=FP_WIDTH),
    },
    first={Role.TIME_EMBED: FLOAT, Role.CONV: Rule(act=FP_WIDTH)},
    kinds={"conv1d": FLOAT},
    attention=AttentionRule(operands=None, softmax=8),
    source="released code d551eac",
)
"""The first linear of the time embedding, the input and the output convolution stay in floating
point, and so do the inputs of the time embedding's second linear and of the first convolution
after the input. Shortcuts, downsampling and Conv1d attention layers are not wrapped. The attention
products are quantized, the softmax to 8 bits. (Restatements of the paper name the input and output
layers alone.)
"""

PTQD = Policy(
    PUBLISHED,
    roles={
        Role.INPUT: EIGHT,
        Role.OUTPUT: EIGHT,
        Role.SHORTCUT: FLOAT,
        Role.DOWNSAMPLE: FLOAT,
    },
    first={Role.TIME_EMBED: EIGHT},
    kinds={"conv1d": FLOAT},
    source="released code 6b190f9",
)
"""The first linear of the time embedding, the input and the output convolution have 8 bits.
Shortcuts, downsampling, Conv1d attention layers and the attention products stay in floating point.
"""
