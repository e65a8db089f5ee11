"""Pieces of markup that a page has thousands of. As functions they take a tenth of a macro's time.

Jinja's filters make texts of values; these make elements of texts.
"""

import functools

from markupsafe import Markup, escape

from quantarena.bench.schema import Measurement
from quantarena.leaderboard.page.format import ends, figure
from quantarena.leaderboard.page.lines import Line
from quantarena.leaderboard.page.plot import Key

HALF = 5.5
"""Half the width of a mark."""


@functools.cache
def shape(name: str, r: float = HALF) -> Markup:
    """An SVG element around the origin, such as for ``triangle``."""
    if name == "circle":
        return Markup(f'<circle r="{r:g}"/>')
    if name == "square":
        return Markup(
            f'<rect x="{-0.9 * r:g}" y="{-0.9 * r:g}" width="{1.8 * r:g}" height="{1.8 * r:g}"'
            ' rx="1"/>'
        )
    a, b, c = (f"{part * r:g}" for part in (0.4, 0.6, 0.8))
    paths = {
        "triangle": f"M0 {-1.15 * r:g}L{1.1 * r:g} {0.85 * r:g}H{-1.1 * r:g}z",
        "diamond": f"M0 {-1.25 * r:g}L{1.25 * r:g} 0L0 {1.25 * r:g}L{-1.25 * r:g} 0z",
        "cross": f"M{-r:g} -{a}h{b}v-{b}h{c}v{b}h{b}v{c}h-{b}v{b}h-{c}v-{b}h-{b}z",
    }
    hexagon = (
        f"M{r:g} 0L{0.5 * r:g} {0.9 * r:g}H{-0.5 * r:g}L{-r:g} 0"
        f"L{-0.5 * r:g} {-0.9 * r:g}H{0.5 * r:g}z"
    )
    return Markup(f'<path d="{paths.get(name, hexagon)}"/>')


@functools.cache
def glyph(look: str, name: str, r: float = HALF) -> Markup:
    """The shape of a look, with the dot that some looks have in it."""
    eye = Markup(f'<circle class="eye" r="{0.38 * r:.3g}"/>') if look[-1] in "23" else ""
    return shape(name, r) + eye


@functools.cache
def _mark(look: str, inside: Markup) -> Markup:
    return Markup(
        f'<svg class="mark{look and " "}{look}" viewBox="-8 -8 16 16" aria-hidden="true">'
        f"{inside}</svg>"
    )


def mark(line: Line, key: Key) -> Markup:
    """The mark of a line's method and bits, as a small drawing."""
    if line.is_fp:
        return _mark("", Markup('<circle r="5" class="hollow"/>'))
    look = key.look(line)
    return _mark(look, glyph(look, key.shape(line.bits)))


def attrs(line: Line) -> Markup:
    """What filters look at. A line without a status is ok."""
    status = "" if line.state == "ok" else f' data-status="{escape(line.state)}"'
    return Markup(f'data-bits="{escape(line.bits)}" data-method="{escape(line.method)}"{status}')


def value(found: Measurement | None) -> Markup:
    """A measurement and its interval; a dash that says why where there is none."""
    if found is None or found.value is None:
        why = f' title="{escape(found.reason)}"' if found and found.reason else ""
        return Markup(f'<span class="none"{why}>–</span>')
    between = ends(found)
    small = f"<small>{escape(between)}</small>" if between else ""
    return Markup(f"{escape(figure(found))}{small}")


def sortable(number: float) -> str:
    """A number as columns are sorted by: with more digits than any that is shown."""
    return f"{number:.7g}"
