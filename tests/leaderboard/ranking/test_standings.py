import numpy as np
import pytest

from quantarena.leaderboard.ranking.image_scores import Margin, ScoreTable
from quantarena.leaderboard.ranking.standings import fold, log_loss, standings, width_order

MARGIN = Margin(1e-4, "made up")


def table(values, names=None, units=None, runs=None, metric="lpips/alex-v0.1", higher=False):
    values = np.asarray(values, dtype=float)
    names = names or tuple(f"m{n}@w4a4" for n in range(len(values)))
    units = units or tuple(f"p{n}" for n in range(values.shape[1]))
    runs = runs or (0,) * values.shape[1]
    return ScoreTable(metric, higher, tuple(names), tuple(units), runs, values, np.empty(0))


def lpips(rng, levels, images=40):
    shared = np.exp(rng.normal(0, 0.6, images))
    return np.array([v * shared * np.exp(rng.normal(0, 0.3, images)) for v in levels])


def tied(standing):
    return {tie.contestant for tie in standing.ties}


def test_widths_are_ranked_apart_the_widest_first():
    rng = np.random.default_rng(0)
    names = ("a@w4a4", "b@w4a4", "a@w8a8", "b@w8a8", "c@fp")
    found = standings(table(lpips(rng, [0.2, 0.1, 0.02, 0.01, 0.001]), names), MARGIN)
    assert [s.contestant for s in found] == ["c@fp", "b@w8a8", "a@w8a8", "b@w4a4", "a@w4a4"]
    assert [s.best_rank for s in found] == [1, 1, 2, 1, 2]
    assert found[2].factor == pytest.approx(2, rel=0.2)
    assert found[2].factor_low < 2 < found[2].factor_high
    assert sorted(["w4a8", "fp", "w2a4", "w4a16", "w8a8"], key=width_order) == [
        "fp", "w8a8", "w4a16", "w4a8", "w2a4"
    ]  # fmt: skip


def test_ranks_are_ranges_and_no_group_hides_a_separation():
    """The last is surely behind the first, and the middle one is told from neither."""
    rng = np.random.default_rng(1)
    found = standings(table(lpips(rng, [0.10, 0.112, 0.125], 24)), MARGIN)
    first, middle, last = found
    assert last.best_rank > first.best_rank
    assert middle.contestant in tied(first)
    assert middle.contestant in tied(last)
    assert last.contestant not in tied(first)


def test_differences_inside_the_margin_are_none():
    values = np.full((2, 30), 1e-5)
    values[1] = 9e-5
    one, other = standings(table(values), MARGIN)
    assert (one.factor, other.factor, other.wins) == (1.0, 1.0, 0.5)
    assert other.best_rank == other.wins_best == 1


def test_a_collapse_shows_though_most_images_are_won():
    rng = np.random.default_rng(2)
    values = lpips(rng, [0.010, 0.011], 60)
    values[0, :3] = 0.8
    found = {s.contestant: s for s in standings(table(values), MARGIN)}
    broken, steady = found["m0@w4a4"], found["m1@w4a4"]
    assert broken.wins > 0.5
    assert broken.worst == pytest.approx(0.8)
    assert broken.worst_share > 0.5
    assert broken.collapses
    assert not steady.collapses


def test_a_clone_changes_no_other_rank():
    rng = np.random.default_rng(3)
    values = lpips(rng, [0.1, 0.12, 0.2])
    before = {s.contestant: s for s in standings(table(values), MARGIN)}
    names = ("m0@w4a4", "m1@w4a4", "m2@w4a4", "clone@w4a4")
    after = {
        s.contestant: s for s in standings(table(np.vstack([values, values[1]]), names), MARGIN)
    }
    for name in ("m0@w4a4", "m1@w4a4", "m2@w4a4"):
        assert tied(after[name]) - {"clone@w4a4"} == tied(before[name])
        assert after[name].factor == pytest.approx(before[name].factor)
    assert "clone@w4a4" in tied(after["m1@w4a4"])


def test_one_reversed_prompt_moves_the_share_of_wins_by_its_weight():
    rng = np.random.default_rng(4)
    values = lpips(rng, [0.1, 0.2], 50)
    before = {s.contestant: s for s in standings(table(values), MARGIN)}
    turned = values.copy()
    turned[:, 0] = [0.9, 1e-3]
    after = {s.contestant: s for s in standings(table(turned), MARGIN)}
    assert abs(after["m0@w4a4"].wins - before["m0@w4a4"].wins) <= 1 / 50 + 1e-12


@pytest.mark.parametrize(("metric", "higher"), [("psnr", True), ("ssim", True)])
def test_metrics_where_more_is_better(metric, higher):
    rng = np.random.default_rng(5)
    distance = lpips(rng, [0.05, 0.1])
    values = -20 * np.log10(distance) if metric == "psnr" else 1 - distance
    first, second = standings(table(values, metric=metric, higher=higher), Margin(1e-3, ""))
    assert first.contestant == "m0@w4a4"
    assert second.factor == pytest.approx(2, rel=0.15)
    assert second.worst <= second.tail
    assert second.wins < 0.5


def test_ties_say_how_many_images_would_tell_them_apart():
    rng = np.random.default_rng(6)
    first, second = standings(table(lpips(rng, [0.1, 0.103], 40)), MARGIN)
    assert first.ties[0].images == second.ties[0].images > 40
    assert standings(table(lpips(rng, [0.1, 0.103], 5)), MARGIN)[1].ties[0].images is None
    same = lpips(rng, [0.1], 40)
    assert standings(table(np.vstack([same, same])), MARGIN)[0].ties[0].images is None


def test_images_of_a_prompt_are_one_unit_and_few_runs_are_averaged():
    scores = np.arange(12.0)[None]
    units = ("p0", "p0", "p1", "p1", "p2", "p2") * 2
    assert fold(scores, units, (0,) * 6 + (1,) * 6) == pytest.approx(np.array([[3.5, 5.5, 7.5]]))


def test_many_runs_are_units_too():
    scores = np.arange(10.0)[None]
    runs = tuple(np.repeat(range(5), 2))
    shared = fold(scores, ("p0", "p1") * 5, runs)
    assert shared.shape == (1, 2, 5)
    assert shared[0, 1].tolist() == [1, 3, 5, 7, 9]
    alone = fold(scores, tuple(f"s{r}/i{n}" for n, r in enumerate(runs)), runs)
    assert alone.tolist() == [[0.5, 2.5, 4.5, 6.5, 8.5]]


def test_loss_is_a_logarithm_that_starts_at_the_margin():
    values = log_loss(table([[1e-9, 0.1]]), MARGIN)
    assert values[0] == pytest.approx(np.log([1e-4, 0.1]))
    assert np.isfinite(log_loss(table([[0.0, 0.0]]), Margin(0.0, ""))).all()
