"""Claims of papers on the page: equal widths and the papers' own side by side, verdict by row."""

import re

from quantarena.leaderboard.page.claims import claim_views
from quantarena.leaderboard.page.page import render

CLAIM = {
    "method": "q_diffusion",
    "paper": "arXiv:0000.00000",
    "setting": "their model at 4 bits",
    "effect": "a tenth of the loss",
    "source": "table 1",
    "offline": {"than": "rtn", "metric": "lpips/alex-v0.1"},
}


def finding(policy, verdict, mean=None, workload="synthetic-shapes", claim=CLAIM):
    ends = (None, None) if mean is None else (mean - 0.01, mean + 0.01)
    return {
        "claim": claim, "policy": policy, "workload": workload, "bits": "w4a8", "verdict": verdict,
        "mean": mean, "low": ends[0], "high": ends[1], "n": 64, "seeds": 2, "other": 0.2,
    }  # fmt: skip


def test_both_policies_are_in_one_line_and_counted():
    (view,) = claim_views(
        [
            finding("uniform", "holds", -0.05),
            finding("published", "opposite", 0.03),
            finding("uniform", "undecided", 0.001, "synthetic-blobs"),
            finding("published", "not measured", None, "synthetic-blobs"),
        ]
    )
    assert [line.workload for line in view.lines] == ["synthetic-shapes", "synthetic-blobs"]
    first = view.lines[0]
    assert (first.uniform.verdict, first.published.verdict) == ("holds", "opposite")
    assert first.uniform.share == -0.25
    assert view.tally("uniform") == "holds in 1 of 2"
    assert view.tally("published") == "holds in 0 of 1, the opposite in 1"


def test_what_nothing_was_measured_of_is_left_out_and_own_widths_may_be_none():
    other = {**CLAIM, "method": "steady"}
    views = claim_views(
        [finding("uniform", "not measured"), finding("uniform", "holds", -0.05, claim=other)]
    )
    assert [view.method for view in views] == ["steady"]
    assert views[0].lines[0].published is None
    assert views[0].tally("published") == "not measured"


def test_the_page_shows_a_claim_with_its_source_and_both_verdicts(results):
    folder, planned = results
    findings = [finding("uniform", "holds", -0.05), finding("published", "opposite", 0.03)]
    path = render(folder, grid_title="t", planned=planned, command="c", claims=findings)
    page = path.read_text(encoding="utf-8")
    section = page[page.index('id="claims"') : page.index("</main>")]
    assert "Q-Diffusion against RTN" in section
    assert "“a tenth of the loss” (table 1)" in section
    (row,) = re.findall(r"<tr><th scope=\"row\".*?</tr>", section, re.DOTALL)
    words = re.sub(r"<[^>]+>", " ", row)
    for text in ("−0.050", "−0.060 to −0.040", "holds", "+0.030", "opposite", "64 images, 2 seeds"):
        assert text in words
    assert words.index("holds") < words.index("opposite")
    path = render(folder, grid_title="t", planned=planned, command="c")
    assert 'id="claims"' not in path.read_text(encoding="utf-8")
