"""Metric plug-ins: the documented example, and what goes wrong with others."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from quantarena.bench.errors import UserError
from quantarena.bench.metrics import plugins
from quantarena.bench.metrics.plugins import load_plugins, metric, plugin_metrics
from quantarena.bench.stages.score import ScoreInputs, score

PAGE = Path(__file__).parents[3] / "docs/metrics.md"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(plugins, "_known", {})
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.delenv(plugins.VARIABLE, raising=False)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Name a file of that text in the environment."""

    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        monkeypatch.setenv(plugins.VARIABLE, str(path))

    return write


def test_the_documented_example(given, photos):
    (example,) = re.findall(r"```python\n(# brightness\.py.*?)```", PAGE.read_text(), re.DOTALL)
    assert example.count("\n") <= 12
    given(example)
    scores = score(ScoreInputs(photos[:8], photos[:8], None, prompts=["a photo"] * 8))
    found = {m.name: m for m in scores.measurements}["brightness/mean"]
    want = photos[:8].float().mean((1, 2, 3)).numpy() / 255
    np.testing.assert_allclose(scores.per_image["brightness/mean"], want, rtol=1e-5)
    assert found.value == pytest.approx(want.mean(), rel=1e-5)
    assert found.low < found.value < found.high
    assert (found.board, found.n, found.higher_is_better) == ("quality", 8, True)


def test_a_file_is_loaded_once(given, photos):
    given(
        "from quantarena.bench.metrics.plugins import metric\n"
        "@metric('one/x', needs_prompts=False)\n"
        "def one(images, prompts):\n    return [1.0] * len(images)\n"
    )
    first, again = load_plugins(), load_plugins()
    assert [p.info.name for p in first] == ["one/x"]
    assert first[0].function is again[0].function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda images, prompts: 1 / 0, "ZeroDivisionError"),
        (lambda images, prompts: [1.0], "gave shape (1,) for 4 images"),
        (lambda images, prompts: [float("nan")] * 4, "not finite"),
        (lambda images, prompts: ["x"] * 4, "could not convert"),
    ],
)
def test_one_that_fails_says_why_and_stops_nothing(photos, function, reason):
    metric("bad/x", needs_prompts=False)(function)
    metric("good/x", needs_prompts=False)(lambda images, prompts: np.arange(4))
    measured, values = plugin_metrics(photos[:4], ())
    bad, good = measured
    assert (bad.value, good.value) == (None, 1.5)
    assert reason in bad.reason
    assert set(values) == {"good/x"}


def test_prompts_that_it_needs(photos):
    metric("text/x")(lambda images, prompts: [len(text) for text in prompts])
    assert plugin_metrics(photos[:2], ())[0][0].reason == "the workload draws from no prompts"
    assert plugin_metrics(photos[:2], ["a", "bcd"])[0][0].value == 2


@pytest.mark.parametrize("name", ["psnr", "fid/mine", "kid/effnet-lite0"])
def test_names_that_are_taken(name):
    with pytest.raises(UserError, match="belongs to quantarena"):
        metric(name)


@pytest.mark.parametrize(
    ("text", "line"), [("import nothing_such", "ModuleNotFoundError"), ("raise SystemExit", "Exit")]
)
def test_a_file_that_does_not_import(given, text, line):
    given(text)
    with pytest.raises(UserError, match=line):
        load_plugins()


def test_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "gone.py"))
    with pytest.raises(UserError, match="is no file"):
        load_plugins()


def test_an_installed_package(monkeypatch, photos):
    class Point:
        value = "package:metrics"

        def load(self):
            metric("package/x", needs_prompts=False)(lambda images, prompts: [2.0] * len(images))

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()])
    assert plugin_metrics(photos[:3], ())[0][0].value == 2


PREFERENCE = PAGE.parent / "plugins" / "preference.py"


def test_preference_models_score_each_image_with_its_prompt(given, photos, monkeypatch):
    given(PREFERENCE.read_text())
    brightness = photos[:4].float().mean((1, 2, 3)).numpy()
    words = ("one", "three", "a house", "seven")

    def seen(prompt, picture):
        assert isinstance(picture, Image.Image)
        return len(prompt) + float(np.asarray(picture, np.float64).mean())

    reward = SimpleNamespace(score=seen)
    asked = []
    load = SimpleNamespace(load=lambda name: asked.append(name) or reward)
    hps = SimpleNamespace(score=lambda image, prompt, hps_version: [seen(prompt, image)])
    monkeypatch.setitem(sys.modules, "ImageReward", load)
    monkeypatch.setitem(sys.modules, "hpsv2", hps)
    _, values = plugin_metrics(photos[:4], words)
    want = brightness + np.array([3, 5, 7, 5])
    np.testing.assert_allclose(values["imagereward/v1.0"], want, rtol=1e-5)
    np.testing.assert_allclose(values["hps/v2.1"], want, rtol=1e-5)
    assert asked == ["ImageReward-v1.0"]


def test_preference_models_that_are_not_installed_say_what_to_install(given, photos, monkeypatch):
    given(PREFERENCE.read_text())
    for name in ("ImageReward", "hpsv2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found, values = plugin_metrics(photos[:2], ("a", "b"))
    assert not values
    reasons = " ".join(m.reason for m in found)
    assert "pip install image-reward" in reasons
    assert "pip install hpsv2" in reasons
