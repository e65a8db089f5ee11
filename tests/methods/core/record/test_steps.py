import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantarena.methods.core.record.call_counts import deal
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.steps import AllCalls, PerCall, UniformStride
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.points.censored_normal import CensoredNormalCalls
from quantarena.methods.techniques.points.tdac import TDAC, apportion


def small(calls=5, rows=6):
    """Every point's value is its number, so repeats show."""
    sample = torch.arange(calls * rows).float().reshape(calls, rows, 1, 1, 1)
    times = torch.arange(calls).flip(0) * 10
    return Trajectory(sample, times, {"context": sample[..., 0, 0, 0] + 0.5})


def features(calls, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(calls, 2, 4, 3, generator=generator)


POLICIES = [
    AllCalls(),
    PerCall(4),
    CensoredNormalCalls(12, std_fraction=0.3),
    TDAC(12, features(5)),
    UniformStride(12, 3),
]
names = [type(policy).__name__ for policy in POLICIES]


@pytest.mark.parametrize("policy", POLICIES, ids=names)
def test_every_policy_keeps_its_word(policy):
    trajectory = small()
    points = policy.draw(trajectory, seed=3)
    counts = policy.counts(trajectory, seed=3)
    asked = {"AllCalls": 30, "PerCall": 20}.get(type(policy).__name__, 12)
    assert len(points) == int(counts.sum()) == asked
    assert [points.histogram().get(k, 0) for k in range(5)] == counts.tolist()
    assert torch.equal(points.timestep, trajectory.timestep[points.step])
    ids = points.sample.flatten()
    assert torch.equal(points.conditions["context"], ids + 0.5)
    assert torch.equal((ids // 6).long(), points.step), "a sample of another step"
    assert len(ids.unique()) == len(ids), "a point was drawn twice"
    uses = torch.bincount((ids % 6).long(), minlength=6)
    assert uses.max() - uses.min() <= 1, "an image came back before all were used"


@pytest.mark.parametrize("policy", POLICIES, ids=names)
def test_draw_is_a_function_of_the_seed(policy):
    draws = [policy.draw(small(), seed).sha256() for seed in (3, 3, 4)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_a_policy_is_noted_in_one_short_line():
    for policy in POLICIES:
        assert "tensor" not in repr(policy)
        assert len(repr(policy)) < 120


def test_all_steps_is_every_point():
    assert sorted(AllCalls().draw(small(), 0).sample.flatten().tolist()) == list(range(30))


def test_no_image_twice_while_images_last():
    points = CensoredNormalCalls(40).draw(small(calls=8, rows=40), seed=1)
    assert len((points.sample.flatten() % 40).unique()) == 40


@pytest.mark.parametrize(
    "policy",
    [PerCall(7), CensoredNormalCalls(200), TDAC(200, features(5))],
    ids=["per_call", "censored", "tdac"],
)
def test_more_than_recorded_is_an_error(policy):
    with pytest.raises(ValueError, match=r"points at one step asked, 6 recorded: record"):
        policy.draw(small(), seed=0)


@pytest.mark.parametrize(
    "policy",
    [CensoredNormalCalls(200, repeat=True), TDAC(200, features(5), repeat=True)],
    ids=["censored", "tdac"],
)
def test_repeats_are_even_when_asked_for(policy):
    points = policy.draw(small(), seed=0)
    assert len(points) == 200
    for step, count in points.histogram().items():
        uses = torch.bincount((points.sample[points.step == step].flatten() % 6).long())
        assert uses.max() <= math.ceil(count / 6)


def test_counts_must_fit_the_trajectory():
    generator = torch.Generator().manual_seed(0)
    for counts in (torch.ones(4).long(), torch.tensor([1, 1, 1, 1, -1])):
        with pytest.raises(ValueError, match="5 numbers of at least 0"):
            deal(small(), counts, generator)


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (PerCall(0), "at least 1"),
        (UniformStride(0), "at least 1"),
        (CensoredNormalCalls(0), "at least 1"),
        (CensoredNormalCalls(4, std_fraction=-0.1), "std_fraction"),
        (CensoredNormalCalls(4, mean_fraction=math.nan), "mean_fraction"),
        (TDAC(0, features(5)), "at least 1"),
        (TDAC(4, features(4)), "features of 4 calls, 5 recorded"),
        (TDAC(4, torch.zeros(5, 2)), r"\(S, n, C"),
        (TDAC(4, features(5) * math.inf), "NaN or infinity"),
        (TDAC(4, features(5), weight=math.inf), "weight must be finite"),
        (TDAC(4, features(5), radius=-1.0), "radius"),
        (TDAC(4, features(5), radius=math.nan), "radius"),
    ],
)
def test_bad_settings_say_so(policy, match):
    with pytest.raises(ValueError, match=match):
        policy.draw(small(), seed=0)


# PTQ4DM


def ks_distance(draws, mean, std):
    """Kolmogorov and Smirnov's distance between draws and a normal."""
    theory = torch.special.ndtr((draws.sort().values - mean) / std)
    steps = torch.arange(len(draws) + 1).double() / len(draws)
    return float(torch.maximum(steps[1:] - theory, theory - steps[:-1]).max())


def test_draws_before_the_clamp_are_normal():
    draws = CensoredNormalCalls(4000).draws(250, torch.Generator().manual_seed(7))
    limit = 1.63 / math.sqrt(len(draws))  # at 1 %
    assert ks_distance(draws, 100, 100) < limit
    assert ks_distance(draws, 110, 100) > limit, "the test has no power"


def test_tails_pile_up_at_both_ends():
    samples, trajectory = 20000, Trajectory(torch.zeros(250, 1, 1), torch.arange(250).flip(0), {})
    share = CensoredNormalCalls(samples).counts(trajectory, seed=0) / samples
    for call, mass in ((249, 0.161), (0, 0.068)):  # the last call is the clean end, t = 0
        sigma = math.sqrt(mass * (1 - mass) / samples)
        assert abs(float(share[call]) - mass) < 3 * sigma + 5e-4  # the masses have three digits
    times = torch.arange(250).flip(0).double()
    mean = float((share * times).sum())
    assert mean / 250 == pytest.approx(0.422, abs=0.01)
    assert math.sqrt(float((share * times.square()).sum()) - mean**2) / 250 == pytest.approx(
        0.321, abs=0.01
    )


def test_wide_normal_is_all_ends():
    counts = CensoredNormalCalls(1024, 0.5, 1e6).counts(small(calls=50), seed=0)
    assert int(counts[0] + counts[-1]) == 1024
    assert counts[0] == pytest.approx(512, abs=60)


def test_narrow_normal_knows_which_end_is_clean():
    points = CensoredNormalCalls(6, 0.0, 0.0).draw(small(), seed=0)
    assert points.histogram() == {4: 6}
    assert set(points.timestep.tolist()) == {0}


class Denoiser(nn.Module):
    def forward(self, sample, timestep, return_dict=True):
        return (torch.sin(sample) * 0.1 + 0.001 * float(timestep),)


def run(model, steps):
    """A seeded sampler over 0 .. 900; returns what the network was fed, by timestep."""
    fed = {}
    sample = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(5))
    for timestep in torch.arange(steps).flip(0) * (900 // (steps - 1)):
        fed[int(timestep)] = sample
        sample = 0.95 * sample - model(sample, timestep)[0]
    return fed


def test_points_are_what_the_network_sees_at_that_timestep():
    model = Denoiser()
    with recording(model) as done:
        run(model, 10)
    points = CensoredNormalCalls(16).draw(done(), seed=2)
    again = run(model, 10)
    assert len(points.histogram()) > 3
    for sample, timestep in zip(points.sample, points.timestep, strict=True):
        same = (again[int(timestep)] == sample).flatten(1).all(1)  # a KeyError is an unmapped step
        assert same.sum() == 1
        mirrored = again[900 - int(timestep)]
        assert not (mirrored == sample).flatten(1).all(1).any()


# EDA-DM


def test_density_of_a_cluster():
    x = torch.randn(9, 2, 4, 3, generator=torch.Generator().manual_seed(0)) * 10
    x[3:7] = x[3] + 1e-3 * torch.randn(4, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    policy = TDAC(9, x, radius=0.1)
    assert policy.density().tolist() == [0, 0, 0, 3, 3, 3, 3, 0, 0]
    assert TDAC(9, x, radius=1e9).density().tolist() == [8] * 9


def test_density_and_diversity_by_hand():
    x = features(6, seed=3)
    density, diversity = torch.zeros(6).double(), torch.zeros(6).double()
    for t in range(6):
        for s in range(6):
            if s != t:
                density[t] += bool((x[t] - x[s]).square().mean() <= 2.0)
                diversity[t] += (1 - torch.cosine_similarity(x[t], x[s], dim=1)).sum().double()
    policy = TDAC(600, x, radius=2.0, weight=1.2)
    assert torch.equal(policy.density(), density)
    assert torch.allclose(policy.diversity(), diversity, atol=1e-5, rtol=1e-5)
    spread = [(v - v.min()) / (v.max() - v.min()) for v in (density, diversity)]
    share = spread[0] + 1.2 * spread[1]
    expected = share / share.sum() * 600
    counts = policy.counts(small(calls=6), seed=0)
    assert (counts - expected).abs().max() <= 1.5
    assert int(counts.sum()) == 600


def test_the_default_radius_follows_the_scale_of_the_features():
    x = features(8)
    assert torch.equal(TDAC(8, x).density(), TDAC(8, 1000 * x).density())
    near = int(TDAC(8, x).density().sum())
    assert near == pytest.approx(0.25 * 56, abs=2)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("samples", [10, 13, 3])
def test_identical_features_give_even_counts(scale, samples):
    x = (features(1) * scale).expand(5, -1, -1, -1)[torch.randperm(5)]
    counts = TDAC(samples, x).counts(small(), seed=0)
    assert int(counts.sum()) == samples
    assert counts.max() - counts.min() <= 1


def test_permuted_steps_permute_the_counts():
    x, order = features(5, seed=8), torch.tensor([3, 0, 4, 1, 2])
    counts = TDAC(1000, x, radius=2.0).counts(small(), seed=0)
    assert torch.equal(TDAC(1000, x[order], radius=2.0).counts(small(), seed=0), counts[order])


def test_a_large_weight_ranks_by_diversity_alone():
    x = features(7, seed=2)
    x[2:5] = x[2:3]  # dense, so density would rank these first
    policy = TDAC(100000, x, weight=1e9, radius=0.1)
    counts = policy.counts(small(calls=7), seed=0)
    value = policy.diversity()
    assert counts.argsort(stable=True).tolist() == value.argsort(stable=True).tolist()
    plain = TDAC(100000, x, weight=0.0, radius=0.1).counts(small(calls=7), seed=0)
    assert plain[2:5].sum() == 100000


def test_one_call_gets_everything():
    assert TDAC(4, features(1)).counts(small(calls=1), seed=0).tolist() == [4]


@settings(max_examples=100, deadline=None)
@given(
    share=st.lists(st.floats(0, 1e300), min_size=1, max_size=40),
    total=st.integers(1, 3000),
)
def test_apportioned_counts_sum_exactly(share, total):
    counts = apportion(torch.tensor(share, dtype=torch.float64), total)
    assert int(counts.sum()) == total
    assert counts.min() >= 0
    weights = torch.tensor(share, dtype=torch.float64)
    if weights.max() > 0:
        weights = weights / weights.max()
        assert (counts - weights / weights.sum() * total).abs().max() <= 1.5 + 1e-6


@pytest.mark.parametrize(
    ("share", "total", "counts"),
    [
        ([1, 1, 1], 4, [2, 1, 1]),  # one missing: to the largest, ties to the first
        ([2, 2, 2, 0], 5, [2, 2, 1, 0]),  # one too many: off the last that has any
        ([0, 0], 3, [2, 1]),
        ([1, 0, 0], 7, [7, 0, 0]),
    ],
)
def test_residuals_go_where_they_should(share, total, counts):
    assert apportion(torch.tensor(share), total).tolist() == counts


@pytest.mark.parametrize("share", [[1.0, -0.1], [math.nan, 1.0], [math.inf, 1.0]])
def test_bad_shares_are_refused(share):
    with pytest.raises(ValueError, match="finite and at least 0"):
        apportion(torch.tensor(share), 4)
