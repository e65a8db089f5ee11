"""Gains of input and output channels that change with the sampler call (TuneQDM).

``W = d_out * (codes - zero_point) * d_in`` (Ryu et al., ECCV 2024, arXiv:2401.04339), with several
pairs of vectors, each for a range of timesteps. The integers are shared: ``d_in`` goes onto the
input and ``d_out`` onto the output, so nothing is packed again when an expert takes over.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.quantizers.call_tables import bank_entry


def expert_of(timestep: Tensor, experts: int, horizon: float) -> Tensor:
    """Expert of each timestep, ``floor(t * N / T)`` inside 0 to N - 1.

    Args:
        timestep: (S,).
        experts: N.
        horizon: T, timesteps that the network was trained with.

    Returns:
        (S,) int64.

    Raises:
        ValueError: no expert, or no horizon.
    """
    if experts < 1 or not horizon > 0:
        raise ValueError(f"{experts} experts over {horizon:g} timesteps: both must be positive")
    return (timestep.double() * experts / horizon).floor().clamp(0, experts - 1).long()


class ScaleExperts(nn.Module):
    """Gains of one layer, a pair of vectors for each expert; all 1 at first.

    Attributes:
        d_in: N vectors (K,), multiply the input channels.
        d_out: N vectors (O,), multiply the output channels before the bias; relative to the scales
            that the codes are under.
        of_call: (S,) int64, expert of each sampler call.
        clock: of the model; None for a layer on its own.
    """

    of_call: Tensor

    def __init__(
        self, d_in: Tensor, d_out: Tensor, of_call: Tensor, clock: CallClock | None = None
    ) -> None:
        """Takes the gains.

        Args:
            d_in: (N, K).
            d_out: (N, O).
            of_call: (S,) integers.
            clock: of the model.

        Raises:
            ValueError: an expert that is not there, or a different number of vectors.
        """
        super().__init__()
        calls = of_call.long()
        if len(d_in) != len(d_out) or int(calls.min()) < 0 or int(calls.max()) >= len(d_in):
            raise ValueError(
                f"{len(d_in)} and {len(d_out)} experts do not fit calls of expert "
                f"{int(calls.min())} to {int(calls.max())}"
            )
        # parameters of their own: an optimiser leaves those alone that have no gradient
        self.d_in, self.d_out = (
            nn.ParameterList(nn.Parameter(row.clone(), requires_grad=False) for row in rows.float())
            for rows in (d_in.detach(), d_out.detach())
        )
        self.register_buffer("of_call", calls)
        self.clock = clock

    @classmethod
    def ones(
        cls, inputs: int, outputs: int, of_call: Tensor, experts: int, clock: CallClock | None
    ) -> "ScaleExperts":
        """Experts that change nothing yet."""
        return cls(torch.ones(experts, inputs), torch.ones(experts, outputs), of_call, clock)

    def before(self, x: Tensor, axis: int) -> Tensor:
        """The input with the present expert's gains on its channels, which lie along ``axis``."""
        return x * self._at(self.d_in, x, axis)

    def after(self, y: Tensor, axis: int) -> Tensor:
        """The output, likewise; the bias is added afterwards."""
        return y * self._at(self.d_out, y, axis)

    def _at(self, gains: nn.ParameterList, x: Tensor, axis: int) -> Tensor:
        """Gains of the present sampler call, shaped over ``x``.

        Raises:
            UserError: the call was not announced, or there is no expert for it.
        """
        entry = bank_entry(self.clock, len(self.of_call), x.shape[0])
        shape = [1] * x.dim()
        if isinstance(entry, int):
            found = gains[int(self.of_call[entry])]
        else:
            chosen = self.of_call[entry]
            first = int(chosen[0])
            if bool((chosen == first).all()):
                found = gains[first]
            else:
                found, shape[0] = torch.stack(list(gains))[chosen], x.shape[0]
        shape[axis] = x.shape[axis]
        gains_at: Tensor = found.reshape(shape)
        return gains_at

    def gains(self) -> tuple[Tensor, Tensor]:
        """All input gains, (N, K), and output gains, (N, O)."""
        d_in, d_out = (torch.stack(list(rows)).detach() for rows in (self.d_in, self.d_out))
        return d_in, d_out

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What can learn, by group: ``expert_in`` and ``expert_out``."""
        return {"expert_in": list(self.d_in), "expert_out": list(self.d_out)}

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep."""
        d_in, d_out = self.gains()
        return {"expert_in": d_in, "expert_out": d_out, "expert_of": self.of_call}

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], shape: torch.Size, channels: int, clock: CallClock | None
    ) -> "ScaleExperts | None":
        """What ``state`` gave; None where it gave nothing.

        Args:
            state: of a layer.
            shape: of its weight.
            channels: of its input.
            clock: of the model.

        Raises:
            BrokenModel: it does not fit the layer.
        """
        if "expert_of" not in state:
            return None
        d_in, d_out = state["expert_in"], state["expert_out"]
        if (d_in.shape[1:], d_out.shape[1:]) != ((channels,), shape[:1]):
            raise BrokenModel(f"experts of {tuple(d_in.shape)} and {tuple(d_out.shape)} do not fit")
        return cls(d_in, d_out, state["expert_of"], clock)
