"""FID, sFID and IS: the tools' own numbers from networks of random weights, and what is missing."""

import numpy as np
import pytest
import torch

from quantarena.bench.errors import UserError
from quantarena.bench.metrics import names
from quantarena.bench.metrics.names import CLEAN_FID, FID, INCEPTION, INCEPTION_SCORE, SFID
from quantarena.bench.metrics.quality import fid, inception, inception_scores, inception_weights
from quantarena.bench.metrics.quality.inception_scores import paper_metrics
from quantarena.bench.metrics.quality.inception_weights import Tool
from quantarena.bench.stages.score import ScoreInputs, score

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric `InceptionScore`"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The `disp` argument"),
]


def cloud(n, seed, shift=0.0, dim=12):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dim, dim))
    return torch.from_numpy((rng.normal(size=(n, dim)) @ mix + shift).astype(np.float32))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No weights on this machine, and nothing remembered."""
    monkeypatch.delenv(inception_weights.VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    find = inception_weights._find
    monkeypatch.setattr(
        inception_weights, "_find", lambda n, g, c: find(n, g, tmp_path if str(c) == "/tmp" else c)
    )
    for tool in (inception_weights.torchmetrics_tool, inception_weights.clean_fid_tool):
        tool.cache_clear()
    yield
    for tool in (inception_weights.torchmetrics_tool, inception_weights.clean_fid_tool):
        tool.cache_clear()


def test_both_tools_agree_on_the_same_features():
    pytest.importorskip("cleanfid.fid")
    test, real = cloud(200, 0, 0.4), cloud(300, 1)
    first, second = fid.torchmetrics_fid(test, real), fid.clean_fid(test, real)
    assert first == pytest.approx(second, rel=1e-6)
    # resampling adds the bias of small N once more, which is why the spread is moved back
    own = fid.frechet_replicates(test, real, resamples=40)
    assert own.mean() > first
    assert fid.centred(first, own).replicates.mean() == pytest.approx(first)


def test_replicates_are_the_statistic_on_resamples(monkeypatch):
    test, real = cloud(60, 0, 0.4), cloud(300, 1)
    drawn = np.random.default_rng(0).integers(0, 60, 60)
    counts = np.bincount(drawn, minlength=60).astype(float)
    monkeypatch.setattr(fid, "resample_counts", lambda *_: counts[None])
    found = fid.frechet_replicates(test, real, resamples=1)[0]
    assert found == pytest.approx(fid.torchmetrics_fid(test[drawn], real), rel=1e-6)


def test_zero_for_the_set_itself():
    pytest.importorskip("cleanfid.fid")
    real = cloud(100, 1)
    for distance in (fid.torchmetrics_fid, fid.clean_fid):
        assert abs(distance(real, real)) < 1e-3


def test_closed_form_of_gaussians():
    """Same covariance, shifted: the squared length of the shift."""
    real = cloud(500, 1)
    shifted = real + 0.5
    assert fid.torchmetrics_fid(shifted, real) == pytest.approx(12 * 0.25, rel=1e-4)


def test_inception_score_of_known_logits():
    sure = torch.eye(10).repeat(20, 1) * 100  # ten classes, each certain, equally often
    assert fid.inception_score(torch.zeros(100, 10)) == pytest.approx(1)
    assert 7 < fid.inception_score(sure) <= 10
    assert fid.score_replicates(sure).mean() == pytest.approx(10, rel=0.05)
    assert fid.score_replicates(torch.zeros(50, 10)) == pytest.approx(np.ones(200))


def test_below_5000_images_nothing_is_asked_for(photos):
    def refuse():
        raise AssertionError("read too early")

    measured, replicates = paper_metrics(photos, refuse)
    assert [m.name for m in measured] == list(INCEPTION)
    assert {m.reason for m in measured} == {"needs at least 5,000 generated images, there are 80"}
    assert replicates == {}


@pytest.fixture
def few(monkeypatch):
    """The same metrics at 40 images."""
    from dataclasses import replace

    small = {name: replace(names.METRICS[name], needs=40) for name in INCEPTION}
    monkeypatch.setattr(inception_scores, "METRICS", {**names.METRICS, **small})


def test_missing_weights_say_what_to_put_where(photos, few):
    measured, _ = paper_metrics(photos, lambda: photos)
    lines = {m.name: m.reason for m in measured}
    for name in (FID, SFID, INCEPTION_SCORE):
        assert inception_weights.FIDELITY_FILE in lines[name]
        assert "QUANTARENA_INCEPTION=FOLDER" in lines[name]
    assert inception_weights.CLEAN_FILE in lines[CLEAN_FID]
    assert all("\n" not in line for line in lines.values())


def test_another_file_under_that_name_is_never_unpickled(tmp_path):
    pytest.importorskip("torch_fidelity")
    (tmp_path / inception_weights.FIDELITY_FILE).write_bytes(b"evil")
    assert "is damaged: its sha256 does not start with 6726825d" in (
        inception_weights.torchmetrics_tool(str(tmp_path))
    )


@pytest.fixture
def random_responses(monkeypatch):
    """Two tools whose networks are random projections of the pixels."""
    projection = torch.randn(3 * 64 * 64, 20, generator=torch.Generator().manual_seed(0)) / 100
    calls = []

    def responses(images, tool, cache_dir=None):
        calls.append(len(images))
        pool = images.float().flatten(1) @ projection / 255
        return {"pool": pool, "spatial": pool[:, :7], "logits": pool}

    tool = Tool("torchmetrics", None, "c" * 64, "torchmetrics 1")
    monkeypatch.setattr(inception_scores, "responses", responses)
    monkeypatch.setattr(inception_scores, "torchmetrics_tool", lambda given: tool)
    monkeypatch.setattr(inception_scores, "clean_fid_tool", lambda given: tool)
    return calls


def test_measurements(photos, real, noisy, few, random_responses):
    pytest.importorskip("cleanfid.fid")
    clean, replicates = paper_metrics(photos, lambda: real)
    worse, _ = paper_metrics(noisy(photos, 60), lambda: real)
    for one, other in zip(clean, worse, strict=True):
        assert one.low < one.value < one.high
        assert one.n == 80
        assert "N = 80" in one.impl
        assert one.extractor_sha256 == "c" * 64
        if one.name in (FID, CLEAN_FID, SFID):
            assert other.value > one.value
            assert one.reference.endswith("n=96")
    assert set(replicates) == set(INCEPTION)


def test_a_reference_without_images_or_too_small(photos, real, few, random_responses):
    def missing():
        raise UserError("it holds features, not images")

    measured, _ = paper_metrics(photos, missing)
    found = {m.name: m for m in measured}
    assert found[FID].reason == "it holds features, not images"
    assert found[INCEPTION_SCORE].value is not None
    measured, _ = paper_metrics(photos, lambda: real[:30])
    assert "needs at least 40 reference images, there are 30" in measured[0].reason


def test_score_has_them_all(photos):
    found = {m.name: m for m in score(ScoreInputs(photos[:4], photos[:4], None)).measurements}
    assert tuple(found) == tuple(name for name in names.METRICS if name not in names.VIDEO)
    assert found[FID].reason == "the workload has no reference images"


@pytest.mark.slow
def test_torchmetrics_network_from_a_given_file(photos, real, tmp_path, monkeypatch):
    """Random weights in the published layout: the tool's own class gives the same number."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    monkeypatch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
    fresh = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.undo()
    torch.save(fresh.state_dict(), tmp_path / inception_weights.FIDELITY_FILE)
    monkeypatch.setattr(inception_weights, "FIDELITY_SHA256", "")
    tool = inception_weights.torchmetrics_tool(str(tmp_path))
    assert isinstance(tool, Tool)
    found = inception.responses(photos[:6], tool, tmp_path / "cache")
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "pool": (6, 2048),
        "spatial": (6, 7 * 17 * 17),
        "logits": (6, 1008),
    }
    again = inception.responses(photos[:6], tool, tmp_path / "cache")
    assert all(torch.equal(again[name], x) for name, x in found.items())
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(tool.file))
    torch.testing.assert_close(network(photos[:6]), found["pool"])


def test_clean_fid_network_from_a_given_file(photos, tmp_path):
    cleanfid = pytest.importorskip("cleanfid.inception_torchscript")
    from cleanfid.resize import build_resizer

    class Layers(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.adaptive_avg_pool2d(x, 32).flatten(1)[:, :2048]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Layers()

        def forward(self, x):
            return self.layers(x)

    torch.jit.script(Network()).save(str(tmp_path / inception_weights.CLEAN_FILE))
    tool = inception_weights.clean_fid_tool(str(tmp_path))
    found = inception.responses(photos[:3], tool)
    assert found["pool"].shape == (3, 2048)
    theirs = cleanfid.InceptionV3W(str(tmp_path), download=False)
    resized = build_resizer("clean")(photos[0].permute(1, 2, 0).numpy())
    want = theirs(torch.from_numpy(resized).permute(2, 0, 1)[None].float())
    torch.testing.assert_close(found["pool"][:1], want)
