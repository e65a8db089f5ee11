"""A module's float weight, which shares its memory until something is moved out of it."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from quantarena.methods.core.quantizers.recent_values import MOVED


class MovableWeight(nn.Module):
    """Holds a weight and the functions that were applied to it, but not their result.

    A large network has no room for a second copy of its weights. The result is computed when it is
    needed, and stored while there is room (``recent_values``).
    """

    _moves: tuple["partial[Tensor]", ...]

    @property
    def weight(self) -> Tensor:
        """Full precision, (O, K / groups, ...), without what was moved out of it."""
        return MOVED.get(self, self._moved) if self._moves else self._weight

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self._weight = nn.Parameter(weight.detach(), requires_grad=False)  # its memory is shared
        self._moves = ()
        MOVED.forget(self)

    def __setattr__(self, name: str, value: Any) -> None:
        # a module would register a parameter of that name, and has no room for one
        if name == "weight":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def move_weight(self, move: "partial[Tensor]") -> None:
        """Change the weight by a function of it, which must always give the same.

        Its further arguments are tensors by keyword, which follow the layer to another device.

        It is called again when the result is needed and no longer stored (``recent_values``).
        """
        moved = move(self.weight.detach())  # refuses what does not fit
        self._moves = (*self._moves, move)
        MOVED.forget(self)
        MOVED.get(self, lambda: moved)

    def _apply(self, fn: Any, recurse: bool = True) -> "MovableWeight":
        """What was moved out of the weight moves to its device too, in its own format."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._moves = tuple(
            partial(move.func, **{n: t.to(self._weight.device) for n, t in move.keywords.items()})
            for move in self._moves
        )
        MOVED.forget(self)
        return self

    def _moved(self) -> Tensor:
        weight = self._weight.detach()
        for move in self._moves:
            weight = move(weight)
        return weight
