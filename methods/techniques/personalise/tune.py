"""The updates of a tuning: small batches, their gradients added up, one step of Adam."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import UserError
from quantarena.methods.techniques.learn.param_groups import Group, Optimiser
from quantarena.methods.techniques.personalise.network import TunedNetwork

Loss = Callable[[int, int], Tensor]
"""The loss of one small batch, from the number of the update and of the batch in it."""


def tune(
    network: TunedNetwork,
    loss: Loss,
    rates: Mapping[str, Group],
    *,
    updates: int,
    accumulate: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Tune what learns in the network.

    Args:
        network: the network.
        loss: the loss of one small batch; the gradients of ``accumulate`` of them are averaged.
        rates: learning rates by group.
        updates: steps of Adam.
        accumulate: small batches for each update.
        progress: called with (updates done, updates in all).

    Returns:
        The loss of each update, before its step.

    Raises:
        UserError: the loss is no longer finite.
    """
    optimiser = Optimiser(network.groups(), rates)
    losses: list[float] = []
    with torch.enable_grad():
        for update in range(updates):
            optimiser.zero_grad()
            total = 0.0
            for number in range(accumulate):
                part: Any = loss(update, number) / accumulate
                part.backward()
                total += float(part.detach())
            if total != total or total in (float("inf"), float("-inf")):
                raise UserError(
                    f"tuning diverged at update {update}: its loss is {total}; lower --lr"
                )
            optimiser.step(update / updates)
            losses.append(total)
            if progress is not None:
                progress(update + 1, updates)
    optimiser.zero_grad()
    return losses
