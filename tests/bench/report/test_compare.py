"""Paired differences of two cells, and how many images would show them."""

from dataclasses import replace

import numpy as np
import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import mean_interval
from quantarena.bench.report.compare import compare_rows
from quantarena.bench.report.power import BEYOND_REASON, images_to_separate
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.spec import Budget, Cell

N = 128
PSNR = (Measurement("psnr", 30.0, unit="dB", higher_is_better=True),)


@pytest.fixture
def row_of(tmp_path):
    """Write a scores file and give the row that names it."""

    def make(method, measurements=PSNR, noise="n", **scores):
        cell = Cell("w", method, "fp" if method == "fp" else "w4a8", budget=Budget(images=N))
        named = {key.replace("__", ":"): values for key, values in scores.items()}
        np.savez(tmp_path / f"{method}.npz", **named)
        return Row(
            cell,
            Status.OK,
            measurements=tuple(measurements),
            artefacts={"scores": f"{method}.npz"},
            workload={"noise_sha256": noise},
        )

    def compared(a, b):
        return {d.name: d for d in compare_rows(tmp_path, a, tmp_path, b)}

    return make, compared


def test_formula():
    # by hand: ((1.96 + 0.84) * 2 / 0.5)^2
    assert images_to_separate(0.5, 2.0) == pytest.approx(125.6, abs=1)
    assert images_to_separate(-0.5, 2.0) == images_to_separate(0.5, 2.0)
    assert images_to_separate(1.0, 0.0) == 2
    assert images_to_separate(0.0, 1.0) is None
    assert images_to_separate(1.0, float("nan")) is None
    assert images_to_separate(1e-3, 1.0) is None  # 7.8 million


def test_that_many_images_do_separate_in_four_of_five_runs():
    rng = np.random.default_rng(0)
    n = images_to_separate(0.4, 1.0)
    hits = 0
    for _ in range(400):
        _, low, high = mean_interval(rng.normal(0.4, 1.0, n), resamples=400)
        hits += low > 0 or high < 0
    assert 0.74 < hits / 400 < 0.88


def test_a_small_difference_says_how_many_images(row_of):
    make, compared = row_of
    rng = np.random.default_rng(1)
    base, gap = rng.normal(30, 2, N), rng.normal(0, 1, N)
    gap += 0.08 - gap.mean()
    found = compared(make("a", psnr=base + gap), make("b", psnr=base))["psnr"]
    assert found.low < 0 < found.high
    assert found.needed == images_to_separate(0.08, gap.std(ddof=1)) > N
    assert found.verdict == (
        f"no difference beyond the noise; about {found.needed:,} images would separate them"
    )


def test_a_large_difference_needs_few(row_of):
    make, compared = row_of
    rng = np.random.default_rng(1)
    base = rng.normal(30, 2, N)
    found = compared(make("a", psnr=base + 1 + rng.normal(0, 1, N)), make("b", psnr=base))["psnr"]
    assert found.verdict == "A is better"
    assert found.needed < 20


def test_beyond_reason(row_of):
    make, compared = row_of
    rng = np.random.default_rng(1)
    gap = rng.normal(0, 1, N)
    gap += 1e-4 - gap.mean()
    found = compared(make("a", psnr=30 + gap), make("b", psnr=np.full(N, 30.0)))["psnr"]
    assert found.needed is None
    assert f"cannot be separated at this budget, nor at {BEYOND_REASON:,} images" in found.verdict


def test_equal_cells(row_of):
    make, compared = row_of
    scores = np.random.default_rng(1).normal(30, 2, N)
    found = compared(make("a", psnr=scores), make("b", psnr=scores))["psnr"]
    assert (found.mean, found.needed) == (0, None)
    assert found.verdict == "no difference beyond the noise: equal image by image"


def test_prompts_that_repeat_are_the_unit(row_of):
    make, compared = row_of
    rng = np.random.default_rng(1)
    gap = np.tile(rng.normal(0.3, 1, N // 4), 4)
    units = np.tile(np.arange(N // 4), 4).astype(float)
    base = rng.normal(30, 2, N)
    alone = compared(make("a", psnr=base + gap), make("b", psnr=base))["psnr"]
    found = compared(
        make("a", psnr=base + gap, unit__prompt=units),
        make("b", psnr=base, unit__prompt=units),
    )["psnr"]
    assert found.mean == alone.mean
    assert found.high - found.low > 1.6 * (alone.high - alone.low)
    assert found.needed == pytest.approx(4 * alone.needed, rel=0.1)


def test_metrics_of_whole_sets_are_paired_by_their_resamples(row_of):
    make, compared = row_of
    rng = np.random.default_rng(1)
    shared, own = rng.normal(0, 20, 2000), rng.normal(0, 1, 2000)

    def kid(value):
        return (Measurement("kid/effnet-lite0", value, value - 40, value + 40, N, reference="r"),)

    key = "replicates:kid/effnet-lite0"
    a = make("a", kid(30.0), psnr=own[:N], **{key: shared + 30 + own})
    b = make("b", kid(25.0), psnr=own[:N], **{key: shared + 25})
    found = compared(a, b)["kid/effnet-lite0"]
    assert found.mean == 5
    assert found.verdict == "B is better"  # though either interval is 80 wide
    assert found.low == pytest.approx(5 - 1.96, abs=0.2)
    other = replace(b, measurements=(replace(kid(25.0)[0], reference="other"),))
    assert set(compared(a, other)) == {"psnr"}


def test_full_precision_stands_with_its_rounded_self(row_of):
    make, compared = row_of
    rng = np.random.default_rng(1)
    floor = rng.normal(45, 2, N)
    fp = make("fp", psnr=np.full(N, 100.0), floor__psnr=floor)
    near = compared(make("a", psnr=floor + rng.normal(0, 1, N)), fp)["psnr"]
    assert near.verdict.startswith("no difference beyond the noise")
    assert compared(make("b", psnr=floor - 10), fp)["psnr"].verdict == "B is better"


def test_other_noise_is_no_pair(row_of):
    make, compared = row_of
    scores = np.ones(N)
    with pytest.raises(UserError, match="have no per-image score in common"):
        compared(make("a", psnr=scores), make("b", ssim=scores))
    with pytest.raises(UserError, match=r"noise, so that their images .* no pairs"):
        compared(make("a", psnr=scores), make("b", noise="m", psnr=scores))


def test_curves_and_other_counts_are_left_out(row_of):
    make, compared = row_of
    scores = {"psnr": np.arange(N) / 7.0, "curve__x": np.ones((3, 4)), "y": np.ones(N)}
    found = compared(make("a", **scores), make("b", **(scores | {"y": np.ones(5)})))
    assert set(found) == {"psnr"}


@pytest.mark.parametrize(("n", "won"), [(2, False), (7, False), (8, True)])
def test_few_images_give_no_verdict(row_of, n, won):
    make, compared = row_of
    base = np.linspace(20, 30, n)
    found = compared(make("a", psnr=base + 5), make("b", psnr=base + np.arange(n) / 10))["psnr"]
    assert found.low > 0
    assert found.verdict == (
        "A is better" if won else f"no verdict: {n} images or prompts, at least 8 are needed"
    )


def test_few_prompts_give_no_verdict_however_many_images(row_of):
    make, compared = row_of
    units = np.repeat(np.arange(3), 20).astype(float)
    base = np.linspace(20, 30, 60)
    a = make("a", psnr=base + 5, unit__prompt=units)
    found = compared(a, make("b", psnr=base + np.arange(60) / 60, unit__prompt=units))["psnr"]
    assert found.verdict.startswith("no verdict: 3 images or prompts")
