"""Counts what happens to modules of this process: parts replaced, layers packed anew.

Looking through a network's modules takes longer than some of its steps. So whoever depends on them
reads this count, and looks only when it moved.
"""

from typing import Any

from torch.nn.modules import module as torch_modules

_KINDS = ("buffer", "module", "parameter")


class Changes:
    """A count of changes since this process started.

    It sees assignments to modules, which torch announces, and what :meth:`note` is told. What
    writes into the dictionaries of a module, past torch, is not seen.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._tables: list[dict[int, Any]] = []
        self._handles: list[Any] = []

    def note(self) -> None:
        """Something changed."""
        self.count += 1

    def seen(self) -> int:
        """The count; from the first call on, and again where torch was made to forget us."""
        if not self._handles or any(
            handle.id not in table
            for handle, table in zip(self._handles, self._tables, strict=True)
        ):
            self._watch()
        return self.count

    def _watch(self) -> None:
        self._tables = [getattr(torch_modules, f"_global_{k}_registration_hooks") for k in _KINDS]
        self._handles = [
            getattr(torch_modules, f"register_module_{kind}_registration_hook")(self._told)
            for kind in _KINDS
        ]
        self.count += 1

    def _told(self, module: Any, name: str, value: Any) -> None:
        self.count += 1


changes = Changes()
"""Of this process."""
