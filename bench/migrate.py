"""Row documents of earlier schema versions, brought up to date one version at a time."""

from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def migrate(document: Document, version: int) -> Document:
    """The document as schema version ``version`` would have written it.

    Raises:
        ValueError: the document has no known version, or a newer one.
    """
    given = document.get("schema_version")
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ValueError(f"row has schema version {given!r}, which is no version of ours")
    if given > version:
        raise ValueError(
            f"row has schema version {given}, but this quantarena reads up to {version}: update it"
        )
    for step in range(given, version):
        document = {**STEPS[step](document), "schema_version": step + 1}
    return document


def _to_2(document: Document) -> Document:
    """Bit operations, code bits, branches and attention products became required in version 2.

    They joined version 1 after its first rows had been written, so they may be unknown.
    """
    observed = document.get("observed")
    if not isinstance(observed, dict):
        return document
    joined = ("code_bits", "bops", "fp_bops", "branch_macs", "attention")
    return {**document, "observed": {**dict.fromkeys(joined), **observed}}


def _to_3(document: Document) -> Document:
    """Ranges have a budget of their own since version 3; before, they had the learning points."""
    cell = document.get("cell")
    budget = cell.get("budget") if isinstance(cell, dict) else None
    if not isinstance(cell, dict) or not isinstance(budget, dict):
        return document
    return {**document, "cell": {**cell, "budget": {"range_samples": 0, **budget}}}


STEPS: dict[int, Callable[[Document], Document]] = {1: _to_2, 2: _to_3}
"""What turns a document of a version into one of the next version."""
