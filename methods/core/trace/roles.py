"""The role of each layer in its network, read from what flows through it.

No class and no attribute names are used: a layer whose output becomes the operand of an attention
product is a query, key or value; one that gets a single row for each image and nothing of the
sample lies on the conditioning path; and so on.
"""

from collections.abc import Sequence
from enum import StrEnum

from torch import nn

from quantarena.methods.core.trace.role_reader import RoleReader, pointwise


class Role(StrEnum):
    """Role of a layer in the network.

    ``TIME_EMBED`` makes the conditioning vector, ``EMB_PROJ`` brings it into a convolutional block,
    ``ADALN`` makes shift, gain and gate of a transformer block, ``CONTEXT`` embeds the tokens of a
    condition, ``ATTN_OUT`` reads the result of attention (the papers' ``proj``).
    """

    INPUT = "input"
    OUTPUT = "output"
    TIME_EMBED = "time_embed"
    EMB_PROJ = "emb_proj"
    ADALN = "adaln"
    CONTEXT = "context"
    SHORTCUT = "shortcut"
    DOWNSAMPLE = "downsample"
    UPSAMPLE = "upsample"
    QKV = "qkv"
    ATTN_OUT = "attn_out"
    FF = "ff"
    CONV = "conv"
    LINEAR = "linear"


def roles(reader: RoleReader, outputs: Sequence[int], attention: set[str]) -> dict[str, Role]:
    """The role of every layer, by path.

    Args:
        reader: the recorded pass.
        outputs: operations that made the network's output.
        attention: paths of layers that make an operand of an attention product.
    """
    last = reader.last(outputs)
    first = next((path for path in reader.runs if reader.sees_sample(path)), last)
    modulating, embedding = reader.modulating(), reader.embedding()
    shortcuts, feedforward = reader.shortcuts(), reader.feedforward()

    def role(path: str) -> Role:
        layer = reader.layers[path]
        if path == last:
            return Role.OUTPUT
        if path == first:
            return Role.INPUT
        if reader.conditioning(path) and path not in attention:
            if path in embedding:
                return Role.TIME_EMBED
            return Role.ADALN if modulating.get(path) else Role.EMB_PROJ
        if path in attention:
            return Role.QKV
        if reader.attended(path):
            return Role.ATTN_OUT
        if path in shortcuts or (reader.splits(path) and pointwise(layer)):
            return Role.SHORTCUT
        if not reader.sees_sample(path):
            return Role.CONTEXT
        if path in feedforward:
            return Role.FF
        if isinstance(layer, nn.Linear):
            return Role.LINEAR
        if max(layer.stride) > 1:
            return Role.DOWNSAMPLE
        return Role.UPSAMPLE if reader.upsampled(path) else Role.CONV

    return {path: role(path) for path in reader.runs}
