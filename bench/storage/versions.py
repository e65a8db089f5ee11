"""Which of two rows of one cell stands where a store and a mirror of it differ. No torch.

Both are results. The rule is the row store's own (``store.py``): the newest attempt stands, but an
ok row is not replaced by one that is not ok. Whoever replaces an ok row by force, or because its
code is stale, has seen that row; so the second half counts for rows that the store has not seen.
"""

from quantarena.bench.schema import Row
from quantarena.bench.store import holds


def ours_stands(ours: Row, theirs: Row, *, unsent: bool) -> bool:
    """Whether a mirror's row stands against the store's.

    Attempts are numbered by the row that was there before, so the higher number is the newer row.
    Of equal numbers, which two machines gave without knowing of one another, the one that ended
    later counts; of one attempt, the row that has its latency.

    Args:
        ours: of the mirror.
        theirs: of the store, with the same key.
        unsent: whether the store has not seen the mirror's row.
    """
    if unsent and holds(ours, theirs):
        return True
    if unsent and holds(theirs, ours):
        return False
    return _age(ours) > _age(theirs)


def is_the_same_with_more(less: Row, more: Row) -> bool:
    """Whether a row is another one before its latency was measured, with nothing of its own."""
    if less.latency is not None or more.latency is None:
        return False
    return _attempt(less) == _attempt(more)


def _attempt(row: Row) -> tuple[int, str, str]:
    return row.attempt, row.started, row.finished


def _age(row: Row) -> tuple[int, str, bool]:
    return row.attempt, row.finished, row.latency is not None
