"""What the gate tells: lines for people, a document for programs, JUnit's XML for CI."""

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from quantarena.bench.documents import clean_text
from quantarena.bench.errors import UserError
from quantarena.bench.gate.limits import RISK, Check, Verdict
from quantarena.bench.gate.measure import Order, Outcome


def line(check: Check) -> str:
    """One check in one line."""
    ends = "no interval" if check.low is None else f"[{check.low:.3g}, {check.high:.3g}]"
    text = f"{check.limit} {check.verdict}: {check.value:.3g} {ends} of {check.n} {check.unit}"
    if check.verdict is not Verdict.OPEN:
        return text
    if check.needed is None:
        return f"{text}; it lies too close to the limit to be decided by any number of them"
    return f"{text}; about {check.needed} {check.unit} would decide"


def lines(order: Order, outcome: Outcome) -> list[str]:
    """The answer for people."""
    answer = "passed" if outcome.passed else "failed"
    held, full = outcome.held_bytes
    head = (
        f"gate {answer}: {order.folder} ({outcome.backend}, {held / 1e6:.2f} of {full / 1e6:.2f} "
        f"MB) against {order.cell.workload}"
    )
    return [head, *(f"  {line(check)}" for check in outcome.checks)]


def document(order: Order, outcome: Outcome) -> dict[str, Any]:
    """The answer for programs, as plain JSON types."""
    checks = []
    for check in outcome.checks:
        said = dataclasses.asdict(check)
        limit = said.pop("limit")
        bound = {("most" if limit["most"] else "least"): limit["bound"]}
        checks.append({"metric": limit["name"], **bound, **said, "verdict": check.verdict.value})
    budget = order.cell.budget
    return {
        "folder": str(order.folder),
        "against": order.cell.workload,
        "passed": outcome.passed,
        "strict": order.strict,
        "risk": RISK,
        "checks": checks,
        "backend": outcome.backend,
        "bytes": outcome.held_bytes[0],
        "fp_bytes": outcome.held_bytes[1],
        "seed": order.cell.seed,
        "images": budget.images,
        "warnings": list(outcome.warnings),
        "machine": outcome.machine,
    }


def junit(order: Order, outcome: Outcome) -> bytes:
    """The answer as JUnit's XML: a test case for each limit; open ones pass unless ``strict``."""
    failing = {Verdict.BROKEN, Verdict.OPEN} if order.strict else {Verdict.BROKEN}
    failed = [check for check in outcome.checks if check.verdict in failing]
    suite = ElementTree.Element(
        "testsuite",
        name="quantarena gate",
        tests=str(len(outcome.checks)),
        failures=str(len(failed)),
        errors="0",
    )
    for check in outcome.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_text(order.folder.name), name=str(check.limit)
        )
        if check in failed:
            ElementTree.SubElement(case, "failure", message=_text(line(check)))
        ElementTree.SubElement(case, "system-out").text = _text(line(check))
    ElementTree.indent(suite)
    written: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written


def write_junit(file: Path, order: Order, outcome: Outcome) -> None:
    """Write JUnit's XML.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(junit(order, outcome) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from None


def _text(value: str) -> str:
    """Text that XML can hold."""
    return "".join(c for c in str(clean_text(value)) if c >= " " or c in "\t\n")
