"""An affine map of the output channels that changes with the sampler call (PTQD).

``gain * y + shift`` after everything else that a layer computes, bias included. On the layer that
makes a network's prediction it corrects the prediction (He et al., NeurIPS 2023, arXiv:2305.10657)
without a word to the sampler; codes and ranges stay.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.options.option import Host, LayerOption, PackedForm
from quantarena.methods.core.quantizers.call_tables import bank_entry


class CallAffine(LayerOption):
    """A gain and a shift of each output channel, for each sampler call.

    Attributes:
        gain: (S, O).
        shift: (S, O).
        clock: the clock of the model; None for a layer outside a model.
    """

    title = "an affine map of output channels by sampler call"
    with_weights = True
    gain: Tensor
    shift: Tensor

    def __init__(self, gain: Tensor, shift: Tensor, clock: CallClock | None = None) -> None:
        super().__init__()
        for name, value in (("gain", gain), ("shift", shift)):
            self.register_buffer(name, value.detach().float().contiguous())
        self.clock = clock

    @classmethod
    def of(cls, gain: Tensor, shift: Tensor, host: Host) -> "CallAffine":
        """The option for a layer.

        Raises:
            ValueError: tables of other shapes, no sampler call, or values that are not finite.
        """
        if misfit := _misfit(gain, shift, host):
            raise ValueError(misfit)
        place = host.weight.device
        return cls(gain.to(place), shift.to(place), host.clock)

    def add(self, y: Tensor, x: Tensor, host: Host) -> Tensor:
        """See ``LayerOption``.

        Raises:
            UserError: the sampler call was not announced or is not in the tables.
        """
        entry = bank_entry(self.clock, len(self.gain), y.shape[0])
        shape = [1] * y.dim()
        shape[host.geometry.channel_axis] = self.gain.shape[1]
        if isinstance(entry, Tensor):
            shape[0] = y.shape[0]
        return y * self.gain[entry].reshape(shape) + self.shift[entry].reshape(shape)

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        return {"call_gain": self.gain, "call_shift": self.shift}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "CallAffine | None":
        """See ``LayerOption``."""
        if "call_gain" not in state:
            return None
        gain, shift = state["call_gain"], state["call_shift"]
        if misfit := _misfit(gain, shift, host):
            raise BrokenModel(misfit)
        return cls(gain, shift, host.clock)

    def lower(self, host: Host) -> PackedForm:
        """See ``LayerOption``."""
        return PackedForm("call_affine", {}, {"gain": self.gain, "shift": self.shift})


def _misfit(gain: Tensor, shift: Tensor, host: Host) -> str:
    """Why tables do not fit the layer; empty where they do."""
    outputs = host.weight.shape[0]
    if gain.dim() != 2 or gain.shape != shift.shape or not len(gain) or gain.shape[1] != outputs:
        return (
            f"gains {tuple(gain.shape)} and shifts {tuple(shift.shape)} do not fit {outputs} "
            "output channels, a row for each sampler call"
        )
    if not bool(torch.isfinite(gain).all() and torch.isfinite(shift).all()):
        return "gains or shifts of output channels are not finite"
    return ""
