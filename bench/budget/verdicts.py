"""Who wins at a budget, and at which budget a method has its knee: told by paired intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantarena.bench.budget.curves import Knee, Measure, Verdict
from quantarena.bench.budget.pairs import Seeds, paired
from quantarena.bench.report.compare import Difference

Entry = tuple[Path, Seeds]
"""Results folder and ok rows of one method at one budget."""

_WORSE, _BETTER = "B is better", "A is better"
_NO_VERDICT = "no verdict"


def winner(
    factor: str, measure: Measure, entries: Mapping[str, Entry], means: Mapping[str, float]
) -> Verdict:
    """Who wins at one budget.

    The best mean is compared with every other method. Those whose paired difference is inside its
    interval are equal to it, and are called so.

    Args:
        factor: the budget.
        measure: the measure.
        entries: by title of the method.
        means: by title, the drawn value; methods without one are left out.
    """
    ranked = sorted(
        (name for name in entries if name in means),
        key=lambda name: -means[name] if measure.higher else means[name],
    )
    if not ranked:
        return Verdict(factor, measure.name, (), "nothing was measured")
    if len(ranked) == 1:
        return Verdict(factor, measure.name, (), f"only {ranked[0]} was measured")
    best, *others = ranked
    gaps = {name: paired(measure.name, entries[best], entries[name]) for name in others}
    refused = next((g for g in gaps.values() if g and g.verdict.startswith(_NO_VERDICT)), None)
    if refused is not None:
        return Verdict(factor, measure.name, (), refused.verdict)
    # Without pairs there is no evidence that the other one is worse.
    equal = [name for name in others if (g := gaps[name]) is None or g.verdict != _BETTER]
    behind = [(name, gap) for name in others if name not in equal and (gap := gaps[name])]
    return Verdict(factor, measure.name, (best, *equal), _sentence(best, equal, behind))


def knee(
    measure: Measure,
    entries: Mapping[str, Entry],
    means: Mapping[str, float],
    seconds: Mapping[str, float | None],
) -> Knee | None:
    """The smallest budget of a method that is not worse than its best one beyond the interval.

    Args:
        measure: the measure.
        entries: by factor, the smallest first.
        means: by factor, the drawn value.
        seconds: by factor, core-seconds of quantizing.

    Returns:
        None where fewer than two budgets have scores, or where images are too few for a verdict.
    """
    known = [factor for factor in entries if factor in means]
    if len(known) < 2:
        return None
    best = (max if measure.higher else min)(known, key=lambda factor: means[factor])
    others = [factor for factor in known if factor != best]
    gaps = {
        factor: paired(measure.name, entries[factor], entries[best], across_budgets=True)
        for factor in others
    }
    # Too few images say nothing, not even where the smallest budget has the best mean.
    if any(gap is None or gap.verdict.startswith(_NO_VERDICT) for gap in gaps.values()):
        return None
    level = [f for f in known if f == best or (gap := gaps[f]) is None or gap.verdict != _WORSE]
    return Knee(level[0], seconds.get(level[0]), level[0] != known[-1])


def _sentence(best: str, equal: Sequence[str], behind: Sequence[tuple[str, Difference]]) -> str:
    if not equal:
        name, gap = behind[0]
        return f"{best} wins; next is {name}, apart by {_text(gap)}"
    ties = f"equal: {best}, {', '.join(equal)}"
    if not behind:
        return f"{ties}; no difference beyond the noise"
    worse = ", ".join(name for name, _ in behind)
    return f"{ties}; worse: {worse}"


def _text(gap: Difference) -> str:
    unit = f" {gap.unit}" if gap.unit else ""
    return f"{gap.mean:+.3g}{unit} ({gap.low:+.3g} to {gap.high:+.3g}), {gap.n} images"
