"""Rows as a small table in Markdown or LaTeX, for a paper or a pull request."""

from collections.abc import Sequence

from quantarena.bench.schema import Measurement, Row

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a pipe table."""
    head, body = cells(rows)
    lines = [head, ["---"] * len(head), *body]
    return "".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in line) + " |\n" for line in lines
    )


def latex(rows: Sequence[Row]) -> str:
    """The rows as a ``tabular`` in the style of the booktabs package."""
    head, body = cells(rows)
    lines = [" & ".join(map(_escape, line)) + r" \\" for line in (head, *body)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(head)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table: the cell, its status, every measurement, speed and size."""
    names = list(dict.fromkeys(m.name for row in rows for m in row.measurements))
    head = ["workload", "method", "bits", "seed", "status", *names, "x fp", "MB", "backend"]
    body = [
        [
            row.cell.workload,
            row.cell.method,
            row.cell.bits,
            str(row.cell.seed),
            str(row.status),
            *(_number(row.measurement(name)) for name in names),
            f"{row.latency.ratio:.2f}" if row.latency else "",
            f"{row.observed.packed_bytes / 1e6:.2f}" if row.observed else "",
            row.backend,
        ]
        for row in sorted(rows, key=lambda r: (r.cell.workload, r.cell.method, r.cell.bits))
    ]
    return head, body


def _number(m: Measurement | None) -> str:
    if m is None or m.value is None:
        return ""
    interval = f" [{m.low:.4g}, {m.high:.4g}]" if m.low is not None and m.high is not None else ""
    return f"{m.value:.4g}{interval}"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
