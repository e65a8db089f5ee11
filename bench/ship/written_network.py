"""A packed network as it is written, for the recording of its step to call."""

from typing import Any

from torch import nn


class AsWritten(nn.Module):
    """Calls a network past what its class does in ``__call__``, with all of its hooks.

    Args:
        network: the network; its mode and its parts are this module's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's result."""
        return nn.Module.__call__(self.network, *args, **kwargs)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """The network's mode."""
        network = self._modules.get("network") if "_modules" in self.__dict__ else None
        return network is not None and network.training

    @training.setter
    def training(self, mode: bool) -> None:
        """Ignored: it is the network that is in a mode."""
