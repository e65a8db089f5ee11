"""The convergence study of docs/ranking.md: every engine in every regime, 30 seeds each.

    python docs/experiments/ranking/convergence.py results/convergence.json --svg convergence.svg

One process takes about six minutes. Finished parts are kept in the JSON file, and not run again.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from quantarena.leaderboard.page.convergence import convergence_svg
from quantarena.leaderboard.ranking.simulation.runs import Setup
from quantarena.leaderboard.ranking.simulation.study import Outcome, Spread, study
from quantarena.leaderboard.ranking.simulation.voters import Regime

MODELS = 50
NOISES = {
    "noiseless": Regime(0.0, 0.0),
    "T0": Regime(0.5, 0.0),
    "T20": Regime(0.5, 0.2),
    "random": Regime(0.5, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One engine in one regime; ``matcher`` is the engine's own where it is empty."""

    engine: str
    regime: str
    size: int
    votes: int
    truth: str = "even"
    every: int = 1
    looks: int = 25
    matcher: str = ""

    @property
    def key(self) -> str:
        """Its name in the JSON file."""
        fields = (self.truth, self.regime, f"k{self.size}", self.engine, self.matcher)
        return "/".join(filter(None, fields))

    @property
    def setup(self) -> Setup:
        """What is simulated."""
        regime = dataclasses.replace(NOISES[self.regime], truth=self.truth)
        return Setup(MODELS, self.size, self.votes, regime, self.every, self.looks)


PARTS = (
    Part("joint", "noiseless", 4, 120),
    Part("joint", "T0", 4, 450),
    Part("joint", "T20", 4, 450),
    Part("joint", "T0", 8, 260),
    Part("joint", "random", 4, 400, looks=1),
    Part("elo", "noiseless", 2, 4000, every=20, looks=0),
    Part("elo", "T0", 2, 4000, every=20, looks=0),
    Part("elo", "T20", 2, 4000, every=20, looks=0),
    Part("ksort", "noiseless", 4, 2000, every=5, looks=50),
    Part("ksort", "T0", 4, 1000, every=5, looks=50),
    Part("ksort", "T20", 4, 1000, every=5, looks=50),
    Part("ksort", "T0", 8, 400, looks=25),
    Part("ksort", "random", 4, 400, every=10, looks=10),
    Part("trueskill", "noiseless", 4, 300, looks=25),
    Part("trueskill", "T0", 4, 500, every=5, looks=25),
    Part("joint", "noiseless", 4, 120, truth="normal"),
    Part("joint", "T0", 4, 450, truth="normal"),
    Part("joint", "T20", 4, 450, truth="normal"),
    Part("joint", "T0", 8, 260, truth="normal"),
    Part("ksort-published", "noiseless", 4, 2000, every=5, looks=50),
    Part("ksort-published", "T0", 4, 1000, every=5, looks=50),
    Part("ksort-published", "T20", 4, 1000, every=5, looks=50),
    Part("ksort-published", "T20", 4, 600, every=5, looks=50, matcher="ksort-printed"),
    Part("trueskill", "T20", 4, 500, every=5, looks=25),
    Part("plackett-luce", "T0", 4, 400, every=100, looks=0),
)


def restored(saved: dict[str, Any]) -> Outcome:
    """An outcome from the JSON file."""
    setup = dict(saved["setup"])
    setup["regime"] = Regime(**setup["regime"])
    lists = {name: tuple(saved[name]) for name in ("seeds", "curve", "curve_at")}
    return Outcome(
        **{
            **saved,
            **lists,
            "setup": Setup(**setup),
            "tau": tuple(Spread(**one) for one in saved["tau"]),
            "exact": Spread(**saved["exact"]),
        }
    )


def shown(spread: Spread) -> str:
    """``median [low-high]``, and how many runs got there where not all did."""
    if spread.low is None:
        return "never"
    middle = "more" if spread.median is None else f"{spread.median:g}"
    if spread.high is not None:
        return f"{middle} [{spread.low}-{spread.high}]"
    return f"{middle} [{spread.low}-], {spread.reached} of {spread.runs} runs"


def row(part: Part, outcome: Outcome) -> str:
    """A line of the table in docs/ranking.md."""
    first = outcome.tau[0].median
    views = "-" if first is None else f"{first * outcome.views:g}"
    blind = outcome.coverage is None or part.regime == "random"
    covered = "-" if blind else f"{100 * outcome.coverage:.0f} %"
    ended = "" if blind else f" ({100 * outcome.coverage_end:.0f} %)"
    name = part.engine + (f" ({part.matcher})" if part.matcher else "")
    cells = (part.truth, part.regime, part.size, name, part.votes, *map(shown, outcome.tau), views)
    claims = f"{outcome.claims:g}, {outcome.false_runs}"
    return (
        f"| {' | '.join(map(str, cells))} | {shown(outcome.exact)} | {covered}{ended} | {claims} |"
    )


def main() -> None:
    """Run what is missing, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="file of the outcomes")
    parser.add_argument("--svg", type=Path, help="file of the plot of regime T0")
    parser.add_argument("--seeds", type=int, default=30, help="runs of each part")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    saved = json.loads(given.json.read_text()) if given.json.exists() else {}
    seeds = range(given.first, given.first + given.seeds)
    for part in PARTS:
        if part.key not in saved:
            began = time.process_time()
            found = study(part.engine, part.setup, seeds, matcher=part.matcher or None)
            saved[part.key] = dataclasses.asdict(found)
            given.json.write_text(json.dumps(saved))
            spent = time.process_time() - began
            print(f"{part.key}: {spent:.0f} s", row(part, found), file=sys.stderr, flush=True)
    outcomes = {part.key: restored(saved[part.key]) for part in PARTS if part.key in saved}
    for part in PARTS:
        print(row(part, outcomes[part.key]))
    if given.svg:
        drawn = [
            outcomes[part.key] for part in PARTS if (part.regime, part.truth) == ("T0", "even")
        ]
        title = f"{MODELS} models, noise 0.5, no random votes (regime T0), {given.seeds} runs"
        given.svg.write_text(convergence_svg(drawn, title), encoding="utf-8")


if __name__ == "__main__":
    main()
