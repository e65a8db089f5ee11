r"""Prints rows of policy ``budget`` beside those of ``uniform``, with paired differences.

    quantarena run quick --policy budget --bits w4a8,w4a4 --name budget \
      --method mixed_rtn,serial_to_parallel,vidit_q
    python docs/experiments/ranking/policies.py results/quick results/budget --bits w4a4

``mixed_rtn`` chooses widths for round-to-nearest, so ``rtn`` stands beside it.
"""

import argparse
from pathlib import Path

from quantarena.bench.metrics.names import LPIPS
from quantarena.bench.report.compare import difference, paired_gaps, prompts_of
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import BUDGET_POLICY, DEFAULT_POLICY
from quantarena.leaderboard.ranking.read_results import load_rows

BESIDE = {"mixed_rtn": "rtn"}
Rows = dict[tuple[str, str, str], Row]


def rows_of(folder: Path, policy: str, seed: int) -> Rows:
    """The ok rows of a policy and seed, by workload, method and bits."""
    return {
        (row.cell.workload, row.cell.method, row.cell.bits): row
        for row in load_rows(folder).rows
        if row.cell.policy == policy and row.cell.seed == seed and row.status is Status.OK
    }


def value(row: Row | None) -> str:
    """The row's LPIPS with its interval."""
    found = None if row is None else row.measurement(LPIPS)
    if found is None or found.value is None:
        return "-"
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uniform", type=Path)
    parser.add_argument("budget", type=Path)
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    uniform = rows_of(given.uniform, DEFAULT_POLICY, given.seed)
    budget = rows_of(given.budget, BUDGET_POLICY, given.seed)
    print("| model | method | `uniform` | `budget` | difference | core-s, `budget` |")
    print("|---|---|---|---|---|---|")
    for (workload, method, bits), row in budget.items():
        if bits != given.bits or method == "fp":
            continue
        other = uniform.get((workload, BESIDE.get(method, method), bits))
        shown = "-"
        if other is not None:
            gap = paired_gaps(given.budget, row, given.uniform, other)[LPIPS]
            found = difference(LPIPS, gap, row, prompts_of(given.budget, row))
            shown = f"{found.mean:+.4f} [{found.low or 0:+.4f}, {found.high or 0:+.4f}]"
        busy = row.calibration.get("core_seconds", 0.0)
        print(
            f"| {workload} | {method} | {value(other)} | {value(row)} | {shown} | {busy:.0f} |"
        )  # fmt: skip


if __name__ == "__main__":
    main()
