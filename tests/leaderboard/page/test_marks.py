"""Pieces of markup: their text is escaped, and what they repeat is what they should."""

from quantarena.bench.schema import Measurement
from quantarena.leaderboard.page import marks
from quantarena.leaderboard.page.gallery import Gallery, Thumbnails, repeated


def test_a_value_and_its_interval_are_elements_and_not_text():
    found = Measurement("lpips/a", 0.0123, 0.0103, 0.0143)
    assert marks.value(found) == "0.0123<small>0.0103–0.0143</small>"


def test_a_reason_is_text_and_no_markup():
    found = Measurement("fid", None, reason='"<script>')
    assert marks.value(found) == '<span class="none" title="&#34;&lt;script&gt;">–</span>'
    assert marks.value(None) == '<span class="none">–</span>'


def test_a_mark_is_a_shape_and_a_dot_for_some_looks():
    assert marks.glyph("c1 s0", "circle") == '<circle r="5.5"/>'
    assert marks.glyph("c1 s2", "circle") == '<circle r="5.5"/><circle class="eye" r="2.09"/>'


def test_pictures_that_a_page_shows_twice_are_written_once():
    def gallery(*uris):
        return Gallery(Thumbnails(None, uris[:1]), (Thumbnails(None, uris[1:]),), ("a",), 64)

    assert repeated([gallery("x", "y", ""), None, gallery("x", "z", "z")]) == {
        "x": "--u0",
        "z": "--u1",
    }
