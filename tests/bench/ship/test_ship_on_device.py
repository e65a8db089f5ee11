"""``quantize`` on a pretended CUDA device: the folder is that of the CPU."""

import pytest
from safetensors.torch import load_file

from quantarena.bench.cli.main import run
from quantarena.methods.core.kernels import soft_weight

FAST = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2", "-q")
CUDA, OFFLOADED = ("--device", "cuda"), ("--device", "cuda", "--offload")


@pytest.fixture(autouse=True)
def _torch_roundings(monkeypatch):
    monkeypatch.setattr(soft_weight, "find", lambda *tensors: None)  # see methods/devices


def quantized(model, folder, method, *place):
    """Exit code of ``quantize``; the cache is its own, so nothing of another device is used."""
    words = ["quantize", model, "--method", method, "--bits", "w4a8", "-o", folder, *FAST, *place]
    return run([*map(str, words), "--cache", f"{folder}-cache"])


def packed(folder):
    (file,) = folder.glob("*/diffusion_pytorch_model.safetensors")
    return load_file(file)


def same(first, second):
    ours, theirs = packed(first), packed(second)
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not value.equal(theirs[name])]


@pytest.mark.parametrize("method", ["rtn", "q_diffusion"])
def test_quantize_writes_the_same_folder(pixel_folder, tmp_path, card, method):
    assert quantized(pixel_folder, tmp_path / "cpu", method) == 0
    assert card.peak == 0
    assert quantized(pixel_folder, tmp_path / "cuda", method, *CUDA) == 0
    whole = card.peak
    card.restart()
    assert quantized(pixel_folder, tmp_path / "offload", method, *OFFLOADED) == 0
    assert 0 < card.peak < whole
    assert same(tmp_path / "cpu", tmp_path / "cuda") == []
    assert same(tmp_path / "cpu", tmp_path / "offload") == []
    assert "--device cuda --offload" in (tmp_path / "offload" / "README.md").read_text()


def test_quantize_refuses_what_cannot_be_offloaded(pixel_folder, tmp_path, card, capsys):
    assert quantized(pixel_folder, tmp_path / "out", "quest", *OFFLOADED) == 2
    assert "quest learns the whole network at once" in capsys.readouterr().err
    assert card.peak == 0, "nothing ran before"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["quantize", "tune"])
def test_a_device_that_is_not_here_is_refused(verb, pixel_folder, tmp_path, capsys):
    words = {
        "quantize": ("--method", "rtn", "--bits", "w4a8"),
        "tune": ("--images", tmp_path, "--token", "blue"),
    }[verb]
    given = [*map(str, (verb, pixel_folder, *words, "-o", tmp_path / "out"))]
    assert run([*given, "--device", "cuda:7"]) == 2
    assert "--device cuda:7: " in capsys.readouterr().err
    assert run([*given, "--offload"]) == 2
    assert "name it, as in --device cuda --offload" in capsys.readouterr().err
