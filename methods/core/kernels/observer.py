"""Who is told of the native calls of this thread: the recording of a step, or nobody.

Native calls get addresses, so torch's dispatcher does not see them. Each place that calls the
library tells what it called it with.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor


class Kind(IntEnum):
    """``QaOpKind`` in ``csrc/step/step.h``: how the library's function takes its arguments."""

    LAYER = 0
    NORM = 1
    ACTIVATION = 2
    EXTREMES = 3
    ATTENTION = 4
    ROTATION = 5
    KERNEL = 6
    GROUPS = 7


@dataclass(frozen=True, slots=True)
class NativeOperation:
    """One call of the library.

    Attributes:
        kind: of the function.
        function: what was called.
        operands: tensors that it read and wrote, in the order of ``QaOpKind``; None where absent.
        params: its structure, a ctypes object or bytes.
        more: its second structure, or None.
        fixed: tensors whose addresses are in the structures.
        flags: of a layer, see ``QaFlags``; of attention, a bit for each grid with a table.
        entry: entry of the activation tables that it read.
        tables: whether that is the sampler call's; else it is the same at every call.
        keep: what must outlive the structures.
    """

    kind: Kind
    function: Any
    operands: tuple[Tensor | None, ...]
    params: Any
    more: Any = None
    fixed: tuple[Tensor | None, ...] = ()
    flags: int = 0
    entry: int = 0
    tables: bool = False
    keep: tuple[Any, ...] = ()


class _Here(threading.local):
    tell: Callable[[NativeOperation], None] | None = None


here = _Here()
"""Of this thread: what is told of each native call."""
