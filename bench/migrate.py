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


def _to_4(document: Document) -> Document:
    """Cells have a target since version 4, and more batches to time; rows name their device."""
    cell = document.get("cell")
    if not isinstance(cell, dict) or not isinstance(cell.get("budget"), dict):
        return document
    target = {"device": "cpu", "dtype": "fp32", "threads": 1, "runtime": "torch"}
    budget = {**cell["budget"], "latency_batches": []}
    beside: Document = {"device": None, "latency_by_batch": []}
    return {**document, **beside, "cell": {**cell, "budget": budget, "target": target}}


def _to_5(document: Document) -> Document:
    """Networks can be offloaded since version 5; before, all were on the device as a whole."""
    cell = document.get("cell")
    if not isinstance(cell, dict) or not isinstance(cell.get("target"), dict):
        return document
    return {**document, "cell": {**cell, "target": {"offload": False, **cell["target"]}}}


def _to_6(document: Document) -> Document:
    """Times say the form of the step since version 6; before, every step was as written."""

    def told(latency: Any) -> Any:
        return {**latency, "step": None} if isinstance(latency, dict) else latency

    by_batch = document.get("latency_by_batch")
    batches = [told(each) for each in by_batch] if isinstance(by_batch, list) else by_batch
    return {**document, "latency": told(document.get("latency")), "latency_by_batch": batches}


STEPS: dict[int, Callable[[Document], Document]] = {
    1: _to_2,
    2: _to_3,
    3: _to_4,
    4: _to_5,
    5: _to_6,
}
"""What turns a document of a version into one of the next version."""
