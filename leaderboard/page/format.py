"""Values as text. Numbers have as many digits as their interval supports, and no more."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from markupsafe import Markup

from quantarena.bench.schema import Latency, Measurement, Row

MOST_SECONDS = 1e10
"""Longest duration that is shown as H:MM:SS."""
DASH = "–"


def digits(low: float | None, high: float | None, value: float) -> int:
    """Decimals to print: one digit of the interval's half width, two if it starts with 1 or 2.

    Without an interval: three digits of the value.
    """
    if low is not None and high is not None and math.isfinite(high - low) and high > low:
        half = (high - low) / 2
        power = math.floor(math.log10(half))
        return max(0, min(6, (1 if half / 10.0**power < 3 else 0) - power))
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, min(6, 2 - math.floor(math.log10(abs(value)))))


def number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A value with as many digits as its interval supports; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits(low, high, value)}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A difference: as ``number``, with a plus in front of what is above zero."""
    return ("+" if value is not None and value > 0 else "") + number(value, low, high)


def signed_percent(share: float) -> str:
    """A relative difference in whole percent, with its sign."""
    return f"{100 * share:+.0f}\N{NARROW NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, joint: str = " to ") -> str:
    """``low to high`` with the digits of the value; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"{number(low, low, high)}{joint}{number(high, low, high)}"


def figure(measurement: Measurement | None) -> str:
    """The value of a measurement; a dash where there is none."""
    if measurement is None:
        return DASH
    return number(measurement.value, measurement.low, measurement.high)


def ends(measurement: Measurement | None) -> str:
    """The interval of a measurement; empty where there is none."""
    if measurement is None:
        return ""
    return interval(measurement.low, measurement.high, "–")


def times(ratio: float) -> str:
    """A speed-up, with two decimals: a timing supports no more."""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def percent(share: float | None) -> str:
    """A share in percent; never ``100 %`` for a part."""
    if share is None or not math.isfinite(share):
        return DASH
    value = 100 * share
    text = f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
    return ("99.9" if text == "100" and value < 100 else text) + "\N{NARROW NO-BREAK SPACE}%"


def size(count: float | None) -> str:
    """Bytes in MB (10^6) or GB (10^9)."""
    if not count:
        return DASH
    unit, value = ("GB", count / 1e9) if count >= 1e9 else ("MB", count / 1e6)
    text = f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return f"{text}\N{NARROW NO-BREAK SPACE}{unit}"


def seconds(value: float | None) -> str:
    """A duration in seconds, or as H:MM:SS from two minutes on."""
    if value is None:
        return DASH
    if value < 120:
        return f"{value:.1f}\N{NARROW NO-BREAK SPACE}s"
    if value > MOST_SECONDS:  # only a damaged row holds it
        return f"{value:.3g}\N{NARROW NO-BREAK SPACE}s"
    return str(timedelta(seconds=round(value)))


def unit(text: str) -> str:
    """A unit as it is printed: ``x1e-3`` becomes a power of ten."""
    base, _, power = text.partition("1e")
    if base in ("x", "") and power.lstrip("-").isdigit():
        return "×10" + power.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return text


def facts(table: Mapping[str, Any], *, longest: int = 400) -> list[tuple[str, str]]:
    """A nested mapping as pairs of texts; long values are cut, empty ones are left out."""
    pairs = []
    for key, value in table.items():
        if value in (None, "", [], {}, ()):
            continue
        if isinstance(value, Mapping):
            text = ", ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list | tuple):
            text = ", ".join(str(item) for item in value)
        elif str(key).endswith("_bytes") and isinstance(value, int):
            text, key = size(value), str(key).removesuffix("_bytes")
        elif isinstance(value, float):
            text = f"{value:.6g}"
        else:
            text = str(value)
        pairs.append((str(key).replace("_", " "), text[:longest] + ("…" * (len(text) > longest))))
    return pairs


def batches(times: Sequence[Latency]) -> list[tuple[str, str]]:
    """One line for each batch that a step was timed with."""
    return [
        (
            f"batch {time.batch}",
            f"{time.step_ms:.2f} ms a step, {time.ratio:.3f} times the speed of {time.fp_setting} "
            f"(95 % interval {time.ratio_low:.3f} to {time.ratio_high:.3f}), "
            f"peak {size(time.peak_bytes)}",
        )
        for time in times
    ]


def device_facts(row: Row) -> list[tuple[str, str]]:
    """What a row's networks ran on, and how; facts that are unknown are left out."""
    known = {} if row.device is None else dataclasses.asdict(row.device)
    table = {name: value for name, value in known.items() if value is not None}
    return facts(table | dataclasses.asdict(row.cell.target))


def times_factor(factor: str) -> str:
    """A factor of a budget as it is read: ``1/4`` becomes ``×1/4``."""
    return f"\N{MULTIPLICATION SIGN}{factor}"


def capitalize_first(text: str) -> str:
    """The text with its first letter in upper case and the others as they are."""
    return text[:1].upper() + text[1:]


def breakable(text: str) -> Markup:
    """Escaped text that may wrap after an underscore, a slash or an at sign."""
    safe = str(Markup.escape(text))
    for mark in "_/@":
        safe = safe.replace(mark, f"{mark}<wbr>")
    return Markup(safe)


FILTERS = {
    "batches": batches,
    "device_facts": device_facts,
    "number": number,
    "figure": figure,
    "ends": ends,
    "times": times,
    "unit": unit,
    "percent": percent,
    "size": size,
    "seconds": seconds,
    "signed": signed,
    "signed_percent": signed_percent,
    "facts": facts,
    "breakable": breakable,
    "times_factor": times_factor,
    "capitalize_first": capitalize_first,
}
