"""Other ways to choose a match, and a known noise, against the joint engine's own: paired by seed.

    python docs/experiments/ranking/match_gains.py --size 4 --votes 480
    python docs/experiments/ranking/match_gains.py --size 8 --votes 260

Skills are draws from N(0, 1), looks have a noise of 0.5 (regime T0). The seeds, 100 to 129, are not
those of docs/ranking.md, so that what is chosen here is judged on others. The gain of a pair is

- ``horizon``: the expected fall in the chance that it is misordered for each of h more looks, at
  the h of 1, 2, 4, 8 where that is largest: one look may change no order where several would;
- ``all-pairs``: the fall in the misordered chance of all pairs, to first order, by what a look at
  this one says of both its members; a look is worth less where its outcome is known before.

One core takes about two minutes for each engine.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, owens_t

from quantarena.leaderboard.ranking.engines import evi
from quantarena.leaderboard.ranking.engines.joint import Joint
from quantarena.leaderboard.ranking.engines.posterior import Posterior
from quantarena.leaderboard.ranking.engines.registry import MATCHERS
from quantarena.leaderboard.ranking.simulation.runs import Setup, simulate
from quantarena.leaderboard.ranking.simulation.voters import Regime
from quantarena.leaderboard.ranking.votes import Floats

REGIME = Regime(0.5, 0.0, "normal")
HORIZONS = (1, 2, 4, 8)
OWN = evi.pair_gains


def differences(belief: Posterior) -> tuple[Floats, Floats]:
    """Means and variances of the differences of all pairs, (N, N) each."""
    own = np.diag(belief.cov)
    spread = np.maximum(own[:, None] + own[None, :] - 2.0 * belief.cov, 1e-12)
    return np.subtract.outer(belief.mean, belief.mean), spread


def unsure(belief: Posterior, gain: Floats) -> Floats:
    """Gains without those of pairs whose order is known, zero on the diagonal."""
    if belief.known is not None:
        sure = np.tensordot(belief.weights, belief.known, 1)
        gain = gain * (1.0 - np.clip(sure + sure.T, 0.0, 1.0))
    gain = np.maximum(gain, 0.0)
    np.fill_diagonal(gain, 0.0)
    return gain


def horizon(belief: Posterior) -> Floats:
    """The best gain a look, over several numbers of looks, (N, N)."""
    mean, var = differences(belief)
    lead, best = np.abs(mean) / np.sqrt(var), np.zeros_like(mean)
    for looks in HORIZONS:
        ratio = np.sqrt(var / (var + 2.0 * belief.noise**2 / looks))
        ratio = np.clip(ratio, 1e-6, 1.0 - 1e-9)
        slope = np.sqrt(1.0 - ratio**2) / ratio
        after = 2.0 * (owens_t(lead, slope) + owens_t(lead / ratio, 0.0))
        best = np.maximum(best, (ndtr(-lead) - after) / looks)
    return unsure(belief, best)


def all_pairs(belief: Posterior) -> Floats:
    """The gain of all pairs by a look at one, (N, N)."""
    mean, var = differences(belief)
    weight = unsure(belief, np.exp(-0.5 * mean**2 / var) / np.sqrt(var))
    moved = belief.cov @ (np.diag(weight.sum(axis=1)) - weight) @ belief.cov
    own = np.diag(moved)
    look = var + 2.0 * belief.noise**2
    chance = ndtr(mean / np.sqrt(look))
    told = np.exp(-(mean**2) / look) / np.maximum(chance * (1.0 - chance), 1e-12)
    return unsure(belief, told * (own[:, None] + own[None, :] - 2.0 * moved) / look)


ENGINES: dict[str, tuple[Callable[[Posterior], Floats], Joint]] = {
    "as shipped": (OWN, Joint()),
    "horizon": (horizon, Joint()),
    "all-pairs": (all_pairs, Joint()),
    "noise known": (OWN, Joint(noises=(0.5,), shares=(0.0,), bounds=False)),
}


def main() -> None:
    """Print a line for each engine: tau as shipped, then mean differences from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--votes", type=int, default=480)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--first", type=int, default=100, help="first seed")
    args = parser.parse_args()
    at = [round(args.votes * share) - 1 for share in (0.25, 0.5, 0.875, 1.0)]
    setup = Setup(50, args.size, args.votes, REGIME, looks=0)
    base = None
    for name, (gains, engine) in ENGINES.items():
        evi.pair_gains = gains
        seeds = range(args.first, args.first + args.runs)
        tau = np.array([simulate(engine, MATCHERS["value"], setup, s).tau[at] for s in seeds])
        base = tau if base is None else base
        gap = tau if name == "as shipped" else tau - base
        error = gap.std(axis=0, ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else gap[0] * np.nan
        cells = (f"{m:.4f} ({e:.4f})" for m, e in zip(gap.mean(axis=0), error, strict=True))
        print(f"{name} after {[n + 1 for n in at]} votes: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
