"""Gains of input and output channels that change with the sampler call (TuneQDM).

``W = d_out * (codes - zero_point) * d_in`` (Ryu et al., ECCV 2024, arXiv:2401.04339), with several
pairs of vectors, each for a range of timesteps. The integers are shared: ``d_in`` goes onto the
input and ``d_out`` onto the output, so nothing is packed again when another pair takes over.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.model.options.option import Host, LayerOption, PackedForm, Product
from quantarena.methods.core.model.options.patches import Patches
from quantarena.methods.core.quantizers.call_tables import bank_entry


def pair_of(timestep: Tensor, pairs: int, horizon: float) -> Tensor:
    """The pair of gains for each timestep, ``floor(t * N / T)`` inside 0 to N - 1.

    Args:
        timestep: (S,).
        pairs: N.
        horizon: T, timesteps that the network was trained with.

    Returns:
        (S,) int64.

    Raises:
        ValueError: no pair, or no horizon.
    """
    if pairs < 1 or not horizon > 0:
        raise ValueError(f"{pairs} pairs over {horizon:g} timesteps: both must be positive")
    return (timestep.double() * pairs / horizon).floor().clamp(0, pairs - 1).long()


class CallGains(LayerOption):
    """Gains of one layer, a pair of vectors for each range of sampler calls; all 1 at first.

    Attributes:
        d_in: N vectors (K,), which multiply the input channels.
        d_out: N vectors (O,), which multiply the output channels before the bias; relative to the
            scales that the codes are under.
        of_call: (S,) int64, the pair of each sampler call.
        clock: the clock of the model; None for a layer outside a model.
    """

    title = "gains by sampler call"
    excludes = (LowRankBranch, Patches)
    with_weights = True
    adds_bias = True
    of_call: Tensor

    def __init__(
        self, d_in: Tensor, d_out: Tensor, of_call: Tensor, clock: CallClock | None = None
    ) -> None:
        """Takes the gains.

        Args:
            d_in: (N, K).
            d_out: (N, O).
            of_call: (S,) integers.
            clock: the clock of the model.

        Raises:
            ValueError: a pair that is not there, or a different number of vectors.
        """
        super().__init__()
        calls = of_call.long()
        if len(d_in) != len(d_out) or int(calls.min()) < 0 or int(calls.max()) >= len(d_in):
            raise ValueError(
                f"{len(d_in)} input gains and {len(d_out)} output gains do not fit calls of pair "
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
    def ones(cls, of_call: Tensor, pairs: int, host: Host) -> "CallGains":
        """Gains that change nothing yet.

        Raises:
            ValueError: a layer with quantized input or of several parts, or a call of no pair.
        """
        if len(host.parts) > 1 or host.parts[0].act_quantizer is not None:
            raise ValueError("gains by sampler call go around a weight-only layer of one part")
        inputs, outputs = host.in_channels, host.weight.shape[0]
        d_in, d_out = (
            torch.ones(pairs, count, device=host.weight.device) for count in (inputs, outputs)
        )
        return cls(d_in, d_out, of_call, host.clock)

    def around(self, product: Product, x: Tensor, host: Host) -> Product:
        """See ``LayerOption``: ``d_out * product(d_in * x) + b``; nothing dense is made."""
        axis = host.geometry.channel_axis

        def with_gains(piece: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            piece = piece * self._at(self.d_in, piece, axis)
            y = product(piece, weight, None)
            y = y * self._at(self.d_out, y, axis)
            return y if bias is None else y + host.geometry.over_channels(bias)

        return with_gains

    def _at(self, gains: nn.ParameterList, x: Tensor, axis: int) -> Tensor:
        """Gains of the present sampler call, shaped over ``x``.

        Raises:
            UserError: the call was not announced, or there is no pair for it.
        """
        if len(gains) == 1:  # serves rows of any call, and inputs without rows
            return self._shaped(gains[0], x, axis)
        entry = bank_entry(self.clock, len(self.of_call), x.shape[0])
        if isinstance(entry, int):
            return self._shaped(gains[int(self.of_call[entry])], x, axis)
        pairs = self.of_call[entry]
        first = int(pairs[0])
        if bool((pairs == first).all()):
            return self._shaped(gains[first], x, axis)
        return self._shaped(torch.stack(list(gains))[pairs], x, axis)

    @staticmethod
    def _shaped(gains: Tensor, x: Tensor, axis: int) -> Tensor:
        """Gains, (K,) or (rows, K), with the axes of ``x``."""
        shape = [1] * x.dim()
        shape[axis] = x.shape[axis]
        if gains.dim() == 2:
            shape[0] = x.shape[0]
        return gains.reshape(shape)

    def gains(self) -> tuple[Tensor, Tensor]:
        """All input gains, (N, K), and output gains, (N, O)."""
        d_in, d_out = (torch.stack(list(rows)).detach() for rows in (self.d_in, self.d_out))
        return d_in, d_out

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See ``LayerOption``: ``gain_in`` and ``gain_out``."""
        return {"gain_in": list(self.d_in), "gain_out": list(self.d_out)}

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        d_in, d_out = self.gains()
        return {"gain_in": d_in, "gain_out": d_out, "gain_of": self.of_call}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "CallGains | None":
        """See ``LayerOption``."""
        if "gain_of" not in state:
            return None
        d_in, d_out = state["gain_in"], state["gain_out"]
        if (d_in.shape[1:], d_out.shape[1:]) != ((host.in_channels,), host.weight.shape[:1]):
            raise BrokenModel(f"gains of {tuple(d_in.shape)} and {tuple(d_out.shape)} do not fit")
        return cls(d_in, d_out, state["gain_of"], host.clock)

    def lower(self, host: Host) -> PackedForm:
        """See ``LayerOption``."""
        d_in, d_out = self.gains()
        tensors = {"d_in": d_in, "d_out": d_out, "of_call": self.of_call}
        bias = host.bias
        if bias is not None:
            tensors["bias"] = bias.detach()
        return PackedForm("expert", {"bias": bias is not None}, tensors)
