"""Prints ``budget.json`` as the tables of docs/results/budget.md, in Markdown.

Run as ``python docs/experiments/budget_tables.py results/NAME/budget.json``.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tables(curves: dict[str, Any]) -> Iterator[str]:
    """For each workload, width and measure: a line for each method, then who wins."""
    factors = [level["factor"] for level in curves["levels"]]
    for panel in curves["panels"]:
        for measure in panel["measures"]:
            name = measure["name"]
            yield f"**{panel['workload']} {panel['setting']}, {measure['title']}**\n"
            yield "| method | " + " | ".join(f"x{factor}" for factor in factors) + " | knee |"
            yield "|---" * (len(factors) + 2) + "|"
            for curve in panel["curves"]:
                knee = curve["knees"].get(name)
                end = "-" if knee is None else f"x{knee['factor']}" if knee["reached"] else "beyond"
                cells = [_cell(stop, name) for stop in curve["stops"]]
                yield f"| {curve['title']} | {' | '.join(cells)} | {end} |"
            yield ""
            for verdict in panel["verdicts"]:
                if verdict["measure"] == name:
                    yield f"- x{verdict['factor']}: {verdict['text']}"
            yield ""


def _cell(stop: dict[str, Any], name: str) -> str:
    found = stop["readings"].get(name)
    if found is None:
        return "-"
    low, high = found["low"], found["high"]
    return f"{found['value']:.3g} [{low:.3g}, {high:.3g}], {stop['core_seconds']:.0f} s"


if __name__ == "__main__":
    print("\n".join(tables(json.loads(Path(sys.argv[1]).read_text()))))
