"""Attention products of a network: who computes them, from which layers, at which cost."""

from dataclasses import dataclass
from enum import StrEnum

from quantarena.methods.core.trace.operation import AttentionCall
from quantarena.methods.core.trace.operations import OperationRecorder
from quantarena.methods.core.trace.role_reader import RoleReader


class AttentionKind(StrEnum):
    """Origin of the keys: the queries' own tokens, other tokens, or two streams joined."""

    SELF = "self"
    CROSS = "cross"
    JOINT = "joint"


@dataclass(frozen=True, slots=True)
class AttentionInfo:
    """The attention products of one module: ``softmax(q k) v``.

    Attributes:
        name: path of the innermost module whose forward computes them.
        kind: self, cross or joint attention.
        order: position among the attention products.
        heads: number of heads.
        queries, keys: number of tokens.
        qk_macs, av_macs: multiply-accumulates for one image in ``q k`` and in ``softmax v``.
        query, key, value: paths of the layers that make the operands.
        fused: whether it is one call of ``scaled_dot_product_attention`` and not separate products.
        products: number of attentions in one call of the module; more than 1 where a module mixes
            several.
    """

    name: str
    kind: AttentionKind
    order: int
    heads: int
    queries: int
    keys: int
    qk_macs: int
    av_macs: int
    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    fused: bool
    products: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both products for one image."""
        return self.qk_macs + self.av_macs


def attention_infos(
    recorder: OperationRecorder, reader: RoleReader, batch: int
) -> dict[str, AttentionInfo]:
    """The attention products of a recorded pass, by the path of the module that computes them."""
    by_path: dict[str, list[AttentionCall]] = {}
    for call in recorder.attention:
        path = recorder.calls[call.call] if call.call >= 0 else ""
        by_path.setdefault(path, []).append(call)
    return {
        path: _attention_info(path, order, calls, reader, batch)
        for order, (path, calls) in enumerate(by_path.items())
    }


def _attention_info(
    path: str, order: int, calls: list[AttentionCall], reader: RoleReader, batch: int
) -> AttentionInfo:
    first = calls[0]
    *outer, queries, keys = first.scores
    heads = 1
    for length in outer:
        heads *= length
    query, key = reader.feeding(first.query), reader.feeding(first.key)
    return AttentionInfo(
        name=path,
        kind=_kind(reader, query, key),
        order=order,
        heads=max(1, heads // batch),
        queries=queries,
        keys=keys,
        qk_macs=sum(call.macs[0] for call in calls) // batch,
        av_macs=sum(call.macs[1] for call in calls) // batch,
        query=query,
        key=key,
        value=reader.feeding(first.value),
        fused=first.fused,
        products=max(sum(c.call == call.call for c in calls) for call in calls),
    )


def _kind(reader: RoleReader, query: tuple[str, ...], key: tuple[str, ...]) -> AttentionKind:
    """Cross where queries and keys come from different tensors, joint where both come from two."""
    origins = [{i for path in paths for i in reader.inputs(path)} for paths in (query, key)]
    if origins[0] != origins[1]:
        return AttentionKind.CROSS
    return AttentionKind.JOINT if len(origins[0]) > 1 else AttentionKind.SELF
