"""Watches a network on the calls of its sampler, for the statistics of the table of phenomena."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantarena.bench.metrics.phenomena.statistics import first_key_share, largest_over_median
from quantarena.methods.core.record.points import evenly
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import AttentionKind, Graph
from quantarena.methods.core.trace.operation import attention_arguments

ROWS = 8
"""Recorded points of each sampler call that are run."""


@dataclass(slots=True)
class Seen:
    """What was seen of a network.

    Attributes:
        channels: of each layer, the largest absolute input of each channel at each call, (S, C).
        tokens: of each layer that reads tokens, the ratio of its largest token to the median one,
            one for each point.
        shares: of each cross-attention, the first key's share over that of a uniform one, for each
            call.
    """

    channels: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)


@torch.no_grad()
def watch(network: nn.Module, graph: Graph, recorded: Trajectory) -> Seen:
    """Run the network on points of every sampler call and note the inputs of its layers."""
    rows = evenly(recorded.rows, ROWS)
    seen, peaks = Seen(), {name: list[Tensor]() for name in graph.layers}
    with _watching(network, graph, seen, peaks):
        for call in range(recorded.calls):
            recorded.pick(torch.full_like(rows, call), rows).call(network)
    seen.channels = {name: torch.stack(found) for name, found in peaks.items() if found}
    return seen


@contextmanager
def _watching(
    network: nn.Module, graph: Graph, seen: Seen, peaks: Mapping[str, list[Tensor]]
) -> Iterator[None]:
    crossing = _Shares(seen)

    def inputs(name: str, axis: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach().abs().movedim(axis, -1)
            peaks[name].append(x.flatten(0, -2).amax(0))
            if axis == -1 and x.dim() == 3 and x.shape[1] > 2:
                ratios = [largest_over_median(tokens) for tokens in x.amax(-1)]
                seen.tokens.setdefault(name, []).extend(ratios)

        return note

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: crossing.inside.append(name)

    with ExitStack() as stack:
        stack.enter_context(crossing)
        for name, layer in graph.layers.items():
            module = network.get_submodule(name)
            axis = -1 if layer.kind == "linear" else -1 - int(layer.kind[4])  # conv2d
            handle = module.register_forward_pre_hook(inputs(name, axis))
            stack.callback(handle.remove)
        for name, attention in graph.attention.items():
            if attention.kind is AttentionKind.CROSS:
                module = network.get_submodule(name)
                handles = (
                    module.register_forward_pre_hook(enter(name)),
                    module.register_forward_hook(lambda *_: crossing.leave()),
                )
                for handle in handles:
                    stack.callback(handle.remove)
        yield


class _Shares(TorchFunctionMode):
    """Notes the first key's share in every fused attention inside of a cross-attention."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.inside: list[str] = []
        self._seen = seen

    def leave(self) -> None:
        self.inside.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside and getattr(func, "__name__", "") == "scaled_dot_product_attention":
            given = attention_arguments(args, kwargs)
            share = first_key_share(
                given["query"], given["key"], given.get("attn_mask"), given.get("scale")
            )
            self._seen.shares.setdefault(self.inside[-1], []).append(share)
        return func(*args, **kwargs)
