"""One network step as a CUDA graph: hundreds of small launches become one."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported

Step = Callable[..., Any]
Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Takes a call without arguments; gives what replays it, and the outputs that a replay rewrites."""

_WARMUPS = 3


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: list[Tensor]
    replay: Callable[[], None]
    outputs: Any


class StepGraph:
    """A function of tensors that is captured on its first call and replayed after.

    Tensors among the arguments are copied into buffers of the graph, and may change in value from
    call to call.  Everything else is part of the graph: a call with another shape, type or constant
    makes another graph, so pass timesteps as tensors.  Outputs are copies that stay valid.

    What the step reads on the host is baked in.  The sampler call that tables are read at is such
    a thing: with the network's clock there is a graph for each call.

    Example:
        >>> graph = StepGraph(unet, "cuda", clock=packed.clock)                # doctest: +SKIP
        >>> noise = graph(sample, timestep, encoder_hidden_states).sample      # doctest: +SKIP
    """

    def __init__(
        self,
        step: Step,
        device: torch.device | str = "cuda",
        *,
        clock: CallClock | None = None,
        limit: int = 64,
        record: Record | None = None,
    ) -> None:
        """Nothing is captured yet.

        Args:
            step: a module or function whose kernels all run on ``device``.
            device: where the buffers of the graph lie; tensors of other devices are copied there.
            clock: of a network that has tables by sampler call; another call makes another graph.
            limit: of graphs that are kept.
            record: how to capture; by default as a CUDA graph.

        Raises:
            Unsupported: no CUDA device here.
        """
        if record is None and not torch.cuda.is_available():
            raise Unsupported(
                "a CUDA graph needs a CUDA device and this process has none: call the step itself"
            )
        self._step = step
        self._device = torch.device(device)
        self._clock = clock
        self._limit = limit
        self._record = record or CudaRecorder(self._device)
        self._graphs: dict[Hashable, _Recorded] = {}

    def __len__(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the step.

        Raises:
            Unsupported: too many different calls, or a step that cannot be captured.
        """
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        signature = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        key = (repr(spec), signature, self._call())
        found = self._graphs.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # buffers that any mode may write
                found = self._graphs[key] = self._capture(leaves, spec)
        else:
            for buffer, tensor in zip(found.inputs, tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
        found.replay()
        outputs, out_spec = tree_flatten(found.outputs)
        copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in outputs]
        return tree_unflatten(copies, out_spec)

    def _call(self) -> Hashable:
        if self._clock is None or not self._clock.is_set:
            return None
        index = self._clock.index
        return tuple(index.tolist()) if isinstance(index, Tensor) else index

    def _capture(self, leaves: list[Any], spec: Any) -> _Recorded:
        if len(self._graphs) >= self._limit:
            raise Unsupported(
                f"more than {self._limit} different calls of one CUDA graph: pass what changes as "
                "tensors, or raise the limit"
            )
        static = [
            torch.empty_like(leaf, device=self._device).copy_(leaf)
            if isinstance(leaf, Tensor)
            else leaf
            for leaf in leaves
        ]
        args, kwargs = tree_unflatten(static, spec)
        replay, outputs = self._record(lambda: self._step(*args, **kwargs))
        return _Recorded([leaf for leaf in static if isinstance(leaf, Tensor)], replay, outputs)


class CudaRecorder:
    """Captures calls as CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Warms up on a stream of its own, then captures.

        Raises:
            Unsupported: the step does something that a graph cannot hold.
        """
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARMUPS):  # compiles kernels and fills caches
                    run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    outputs = run()
            except RuntimeError as error:
                raise Unsupported(
                    f"this step cannot be a CUDA graph, does it read values back to the host? "
                    f"({str(error).splitlines()[0]})"
                ) from error
            self._pool = graph.pool()
            return graph.replay, outputs
