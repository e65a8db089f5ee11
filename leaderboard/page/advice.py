"""The recommendation at the head of the page: what to ship, by a rule that is printed beside it.

Speed-ups are relative to the fastest unquantized setting whose images stay within full precision's
own margin. So a quantized cell that is worth shipping has a speed-up above 1, and where none has,
that setting itself is the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantarena.leaderboard.page.boards import short_name
from quantarena.leaderboard.page.format import interval, number, percent, times
from quantarena.leaderboard.page.lines import Line
from quantarena.leaderboard.page.pareto import Span, overlap, span_of

TOLERANCE = {"lpips": 0.05, "ssim": 0.05, "psnr": 2.0}
"""Loss of fidelity that is accepted for speed, in the judge's metric.

It is counted from the packed method that is nearest to full precision."""

MOST_NAMES = 3
"""Largest number of tied methods that a headline names."""

SHIP, MEMORY, NOTHING = "ship", "memory", "nothing"
UNQUANTIZED = "unquantized"


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommendation for one board.

    Attributes:
        kind: ``ship`` (it is faster), ``unquantized`` (full precision in another setting is
            faster than all that is quantized), ``memory`` (it is smaller but not faster) or
            ``nothing``.
        headline: the recommendation in a few words.
        sentence: the evidence for it.
        choice: the recommended line, None when full precision stays.
        rule: how it was chosen, in words.
        ties: lines of the same width that cannot be told from the choice, as fast and as near.
        doubt: what would change the answer, and what to look at; empty where nothing is known.
    """

    kind: str
    headline: str
    sentence: str
    choice: Line | None
    rule: str
    ties: tuple[Line, ...] = ()
    doubt: str = ""


def advise(lines: Sequence[Line], metric: str | None, another_draw: float | None = None) -> Advice:
    """Choose what to ship among the lines that have a speed and a fidelity.

    A line that is self-reported is not among them: its sender alone could choose the answer.

    Args:
        lines: of one board.
        metric: the judge's, None where the board has no per-image scores.
        another_draw: mean of the metric between images of other noise, which says how much the
            tolerance is.
    """
    checked = [line for line in lines if not line.self_reported]
    advice = _advise(checked, metric)
    if advice.kind == NOTHING and len(checked) < len(lines):
        advice = replace(
            advice,
            sentence=f"{advice.sentence} Rows that are self-reported are never recommended.",
        )
    return replace(advice, rule=rule_text(metric, another_draw))


def _advise(lines: Sequence[Line], metric: str | None) -> Advice:
    timed = [line for line in lines if line.timed and line.ok and not line.is_fp]
    packed = [line for line in timed if not line.is_unquantized]
    if metric is None or not any(
        line.ok and not line.is_fp and not line.is_unquantized for line in lines
    ):
        return Advice(
            NOTHING,
            "Stay with full precision for now",
            "No quantized cell has finished, so there is no evidence for anything else.",
            None,
            rule_text(metric),
        )
    spans = {line.name: span for line in packed if (span := span_of(line, metric))}
    usable = [line for line in packed if line.name in spans]
    if not usable:
        return Advice(
            NOTHING,
            "No measured speed-up, so stay with full precision",
            "No cell ran on packed integer kernels or a rival's own with its latency measured. The "
            "fidelity board "
            "below is valid; the latency of reference kernels says nothing about speed.",
            None,
            rule_text(metric),
        )
    near = _near(usable, spans, metric)
    faster = [line for line in near if _ratio(line).low > 1.0]
    if faster:
        return _ship(faster, spans, metric)
    if setting := _unquantized(timed, lines):
        return _ship_unquantized(setting, near, metric)
    return _not_faster(usable, near, spans, metric)


def rule_text(metric: str | None, another_draw: float | None = None) -> str:
    """How ``advise`` chooses, in words."""
    if metric is None:
        return "Only finished cells with per-image scores can be recommended."
    name, width = short_name(metric), TOLERANCE[metric.split("/")[0]]
    share = ""
    if another_draw and metric.startswith("lpips"):
        share = f" ({percent(width / another_draw)} of what other noise changes)"
    return (
        f"Of the quantized cells on packed kernels or a rival's own, keep those whose {name} "
        f"interval ends within {width:g} of that of the cell nearest to full precision{share}. Of "
        "these, "
        "take the fastest whose speed-up over the fastest unquantized setting is above 1 with its "
        "whole interval, and all whose interval overlaps with its own. The nearest of these leads; "
        "what cannot be told from it at its width ties with it, and the smallest of the tied is "
        "named first. Where none is faster, that unquantized setting is the answer."
    )


def _near(usable: Sequence[Line], spans: dict[str, Span], metric: str) -> list[Line]:
    family = metric.split("/")[0]
    if family == "lpips":
        limit = min(spans[line.name].high for line in usable) + TOLERANCE[family]
        return [line for line in usable if spans[line.name].high <= limit]
    limit = max(spans[line.name].low for line in usable) - TOLERANCE[family]
    return [line for line in usable if spans[line.name].low >= limit]


def _ship(faster: Sequence[Line], spans: dict[str, Span], metric: str) -> Advice:
    lead = max(faster, key=lambda line: _ratio(line).value)
    quick = [e for e in faster if overlap(_ratio(e).ends, _ratio(lead).ends)]
    tied = _tied(quick, spans, metric)
    choice, others = tied[0], tied[1:]
    ratio = _ratio(choice)
    size = f", in {percent(choice.share)} of its bytes" if choice.share is not None else ""
    also = f" {_listed(others)} cannot be told from it at {choice.bits}." if others else ""
    return Advice(
        SHIP,
        f"Ship {_any_of(tied)} at {choice.bits}",
        f"A step takes {percent(1 / ratio.value)} of full precision’s time ({times(ratio.value)}× "
        f"as fast, 95 % interval {times(ratio.low)} to {times(ratio.high)}){size}; "
        f"{_distance(spans[choice.name], metric)}.{also}",
        choice,
        rule_text(metric),
        tuple(others),
        _doubt(choice, others),
    )


def _tied(lines: Sequence[Line], spans: dict[str, Span], metric: str) -> list[Line]:
    """The nearest line and those of its width that it is not separated from, the smallest first."""
    sign = 1 if metric.split("/")[0] == "lpips" else -1
    best = min(lines, key=lambda e: (sign * spans[e.name].value, e.share or 1.0, e.name))
    ties = {tie.contestant for tie in best.standing.ties} if best.standing else set()
    same = [e for e in lines if e is best or e.name in ties]
    # sizes that differ by less than a percent of full precision's are equal
    return sorted(
        same, key=lambda e: (round(e.share or 1.0, 2), sign * spans[e.name].value, e.name)
    )


def _listed(lines: Sequence[Line]) -> str:
    names = [line.title for line in lines]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _any_of(lines: Sequence[Line]) -> str:
    """The names of what ties, the first only where there are many."""
    names = [line.title for line in lines]
    if len(names) > MOST_NAMES:
        return f"{names[0]}, or one of {len(names) - 1} that tie,"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _doubt(choice: Line, others: Sequence[Line]) -> str:
    """What would change the answer, and which of its images to look at."""
    said = []
    group = [line for line in (choice, *others) if line.standing]
    names = {line.name: line.title for line in others}
    ties = choice.standing.ties if choice.standing else ()
    wanted = sorted(
        (t.images, names[t.contestant]) for t in ties if t.contestant in names and t.images
    )
    if wanted:
        said.append(f"About {wanted[0][0]:,} images would tell {wanted[0][1]} from it.")
    elif others:
        said.append("No affordable number of images would tell them apart.")
    for line in group:
        if line.standing and line.standing.collapses:
            said.append(
                f"Look at the worst images of {line.title}: a twentieth of them make "
                f"{percent(line.standing.worst_share)} of its loss."
            )
    return " ".join(said)


def _unquantized(timed: Sequence[Line], lines: Sequence[Line]) -> Line | None:
    """The setting that speed-ups are relative to, where it is another one than fp32 of torch."""
    settings = {line.latency.fp_setting for line in lines if line.latency}
    if len(settings) != 1:  # rows of several versions: their ratios cannot be compared
        return None
    # its contestant is eager in the usual layout, whichever layout was faster
    name = settings.pop().replace("channels_last", "eager")
    return next((line for line in timed if line.is_unquantized and line.backend == name), None)


def _ship_unquantized(setting: Line, near: Sequence[Line], metric: str) -> Advice:
    best = max(near, key=lambda line: _ratio(line).value)
    ratio, small = _ratio(best), min(near, key=lambda line: line.share or 1.0)
    figure = setting.figure(metric)
    distance = "" if figure is None else f" ({short_name(metric)} {figure.value or 0:.2g})"
    step = f", {number(setting.latency.step_ms)} ms a step" if setting.latency else ""
    return Advice(
        UNQUANTIZED,
        f"Ship {setting.backend.removesuffix(' eager')}, unquantized",
        f"No quantized cell near full precision is faster than it{step}: the best, {best.title} at "
        f"{best.bits}, has {times(ratio.value)}× its speed (95 % interval {times(ratio.low)} to "
        f"{times(ratio.high)}). Its images are full precision’s{distance}; it takes "
        f"{percent(setting.share)} of full precision’s bytes, {small.title} at {small.bits} "
        f"{percent(small.share)}.",
        setting,
        rule_text(metric),
    )


def _not_faster(
    usable: Sequence[Line], near: Sequence[Line], spans: dict[str, Span], metric: str
) -> Advice:
    lead = max(usable, key=lambda line: _ratio(line).value)
    quick = _ratio(lead)
    if quick.low > 1.0:
        speed = (
            f"The faster method ({lead.title} {lead.bits}, {quick.value:.2f}×) strays too far from "
            "full precision"
        )
    else:
        speed = (
            "Nothing here is faster than full precision: the best speed-up is "
            f"{quick.value:.2f}× (95 % interval {quick.low:.2f} to {quick.high:.2f})"
        )
    small = [line for line in near if line.share is not None and line.share < 1.0]
    if not small:
        return Advice(NOTHING, "Stay with full precision", f"{speed}.", None, rule_text(metric))
    sign = 1 if metric.split("/")[0] == "lpips" else -1
    choice = min(
        small, key=lambda e: (round(e.share or 1.0, 3), sign * spans[e.name].value, e.name)
    )
    return Advice(
        MEMORY,
        "Stay with full precision, unless memory is short",
        f"{speed}. For memory alone, {choice.title} at {choice.bits} needs "
        f"{percent(choice.share)} of "
        f"the bytes at {_ratio(choice).value:.2f}× the speed; "
        f"{_distance(spans[choice.name], metric)}.",
        choice,
        rule_text(metric),
    )


def _distance(span: Span, metric: str) -> str:
    return (
        f"{short_name(metric)} to full precision {number(span.value, span.low, span.high)} "
        f"({interval(span.low, span.high)})"
    )


def _ratio(line: Line) -> Span:
    time = line.latency
    return Span(time.ratio, time.ratio_low, time.ratio_high) if time else Span(0.0, 0.0, 0.0)
