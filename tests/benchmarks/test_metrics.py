"""Cost of scoring one cell: 128 images of 64 px, one thread, reference features at hand."""

import pytest
import torch

from quantarena.bench.metrics.fidelity.lpips import lpips
from quantarena.bench.metrics.fidelity.psnr_ssim import psnr, ssim
from quantarena.bench.metrics.names import METRICS
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.quality.features import features_of
from quantarena.bench.metrics.quality.frechet import frechet
from quantarena.bench.metrics.quality.kid import kid
from quantarena.bench.metrics.quality.precision_recall import precision, recall
from quantarena.bench.metrics.text.alignment import alignment, scorer
from quantarena.bench.stages.score import ScoreInputs, score

N, SIDE = 128, 64


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 8, 8, generator=generator)
    large = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bicubic")
    return (large.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def inputs():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fp = pictures(N, 0)
    test = (fp.int() + 3).clamp(max=255).to(torch.uint8)
    yield fp, test, features_of(pictures(512, 1), "smooth noise")
    torch.set_num_threads(threads)


def test_score(benchmark, inputs):
    scores = benchmark.pedantic(score, (ScoreInputs(*inputs),), warmup_rounds=1, rounds=3)
    assert len(scores.measurements) == len(METRICS)
    benchmark.extra_info.update(images=N, side=SIDE, reference=len(inputs[2].tensor))


@pytest.mark.parametrize("metric", [psnr, ssim, lpips])
def test_fidelity(benchmark, inputs, metric):
    fp, test, _ = inputs
    values = benchmark.pedantic(metric, (fp, test), warmup_rounds=1, rounds=3)
    assert len(values) == N


def test_features(benchmark, inputs):
    network = effnet_lite0()
    found = benchmark.pedantic(extract, (inputs[0], network), warmup_rounds=1, rounds=3)
    assert len(found) == N


def test_kid(benchmark, inputs):
    _, test, reference = inputs
    features = extract(test, effnet_lite0())
    constant = {"reference_similarity": reference.self_similarity}
    benchmark.pedantic(kid, (features, reference.tensor), constant, warmup_rounds=1, rounds=3)


def test_frechet(benchmark, inputs):
    _, test, reference = inputs
    features = extract(test, effnet_lite0())
    benchmark.pedantic(frechet, (features, reference.pca), warmup_rounds=1, rounds=3)


def test_precision_and_recall(benchmark, inputs):
    _, test, reference = inputs
    features = extract(test, effnet_lite0())

    def both():
        precision(features, reference.tensor, reference.radii)
        recall(features, reference.tensor)

    benchmark.pedantic(both, warmup_rounds=1, rounds=3)


def test_alignment(benchmark, inputs):
    known = scorer()
    features, prompts = extract(inputs[1], effnet_lite0()), known.captions[:N]
    found = benchmark.pedantic(alignment, (features, prompts, known), warmup_rounds=1, rounds=3)
    assert all(len(values) == N for values in found.values())
