"""The verb ``tune`` on a tiny text-to-image pipeline: tune, ship, draw; and what it refuses."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from quantarena.bench.cli.main import run
from quantarena.bench.personalise import personalise
from quantarena.bench.ship.pipeline_folder import open_exported
from quantarena.methods import hyper_parameters

tiny_pipelines = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))
)
FAST = ("--updates", "3", "--accumulate", "2", "-q")


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    """Stable Diffusion's layout with random weights, 16 px."""
    folder = tiny_pipelines.save("sd1", tmp_path_factory.mktemp("tiny") / "sd1")
    settings = {
        "steps": 2,
        "guidance": 3.0,
        "resolution": 16,
        "conditions": {"kind": "prompt", "values": ["a red cat", "a dog in snow"]},
    }
    (folder / "workload.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "subject"
    folder.mkdir()
    for index in range(2):
        pixels = np.full((32, 32, 3), 60 * (index + 1), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def tuned(workload, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "tuned"
    given = ("--images", pictures, "--token", "blue", "--prompt", "a blue cat", "--bits", "w4")
    assert run([str(a) for a in ("tune", workload, *given, "-o", folder, *FAST)]) == 0
    return folder


def told(capsys, *arguments):
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def codes(folder):
    layers = open_exported(folder).packed
    return {name: layers.parts(name)[0].codes for name in layers.layers}


def test_the_export_says_what_was_learned(tuned, pictures):
    meta = open_exported(tuned).meta
    assert meta["bits"] == "w4a16"
    assert meta["subjects"] == [{"token": "blue", "prompt": "a blue cat", "images": 2}]
    assert meta["tuning"]["trainable"] > 0
    assert meta["tuning"]["memory"]["peak"] > 0
    assert "--token blue --prompt 'a blue cat' --bits w4a16" in meta["command"]
    card = (tuned / "README.md").read_text()
    assert "TuneQDM, personalised at w4a16" in card
    assert str(pictures.parent) not in card


def test_sample_draws_its_subject(tuned, tmp_path, capsys):
    code, out, err = told(capsys, "sample", tuned, "-n", 2, "-o", tmp_path / "x.png", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["prompts"] == ["a blue cat"] * 2
    assert found["backend"] == "weight-only"


def test_tuning_an_export_leaves_its_codes(tuned, pictures, tmp_path, capsys):
    again = tmp_path / "again"
    given = ("--images", pictures, "--token", "red", "--approach", "tuneqdm")
    code, out, err = told(capsys, "tune", tuned, *given, "-o", again, *FAST, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["meta"]["base_model"] == "sd1"
    before, after = codes(tuned), codes(again)
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, two = (
        torch.cat([layer.d_out.flatten() for layer in open_exported(f).packed.layers.values()])
        for f in (tuned, again)
    )
    assert not torch.equal(one, two)


@pytest.mark.parametrize("approach", ["peqa", "lora"])
def test_two_subjects_and_other_approaches(approach, workload, pictures, tmp_path, capsys):
    given = ("--images", pictures, "--token", "red", "--images", pictures, "--token", "dog")
    more = ("--approach", approach, "--bits", "w4a16", "--recompute")
    code, out, err = told(
        capsys, "tune", workload, *given, *more, "-o", tmp_path / "m", *FAST, "--json"
    )
    assert code == 0, err
    assert [s["token"] for s in json.loads(out)["meta"]["subjects"]] == ["red", "dog"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"--bits": None}, "has float weights: say --bits"),
        ({"--bits": "w4a8"}, "tune packs weights to 1 to 8 bits and nothing else"),
        ({"--bits": "w9"}, "w9"),
        ({"--token": "zzz"}, "the prompt 'a blue cat' has no word 'zzz'"),
        ({"--images": "nowhere"}, "nowhere is not a folder of images"),
        ({"--approach": "tuneqmd"}, "did you mean tuneqdm"),
        ({"--prompt": "a blue cat " + "in snow " * 9}, "which has"),
    ],
)
def test_mistakes_are_one_line(more, line, workload, pictures, tmp_path, capsys):
    given = {
        "--images": pictures,
        "--token": "blue",
        "--prompt": "a blue cat",
        "--bits": "w4",
        **more,
    }
    words = [word for pair in given.items() if pair[1] is not None for word in pair]
    code, _, err = told(capsys, "tune", workload, *words, "-o", tmp_path / "out", *FAST)
    assert code == 2, err
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_papers_own_recipe(workload, pictures, tmp_path, capsys, monkeypatch):
    """It is 400 updates of one image; here four of them, of which the export says what ran."""
    short = replace(hyper_parameters.TUNE_QDM, updates=4)
    monkeypatch.setattr(hyper_parameters, "TUNE_QDM", short)
    given = ("--images", pictures, "--token", "red", "--bits", "w4", "--paper")
    code, out, err = told(capsys, "tune", workload, *given, "-o", tmp_path / "m", "-q", "--json")
    assert code == 0, err
    meta = json.loads(out)["meta"]
    assert meta["options"] == {"updates": 4, "accumulate": 1, "experts": 4, "lr": 3e-6}
    assert "--approach tuneqdm --paper --experts 4" in meta["command"]
    for more in (("--lr", "1e-3"), ("--updates", "9"), ("--approach", "peqa")):
        said = told(capsys, "tune", workload, *given, *more, "-o", tmp_path / "n")[2]
        assert "own recipe" in said


def test_subjects_and_tokens_must_pair(workload, pictures, tmp_path, capsys):
    given = ("--images", pictures, "--images", pictures, "--token", "red", "--bits", "w4")
    code, _, err = told(capsys, "tune", workload, *given, "-o", tmp_path / "out")
    assert code == 2
    assert "do not pair" in err
    given = (*given, "--token", "red")
    assert "the same token" in told(capsys, "tune", workload, *given, "-o", tmp_path / "out")[2]


def test_models_that_cannot_be_tuned(tuned, pixel_folder, pictures, tmp_path, capsys):
    given = ("--images", pictures, "--token", "red", "-o", tmp_path / "out", "-q")
    code, _, err = told(capsys, "tune", pixel_folder, *given, "--bits", "w4")
    assert (code, err.count("\n")) == (2, 1)
    assert "does not draw from prompts" in err
    assert "is packed already" in told(capsys, "tune", tuned, *given, "--bits", "w4")[2]
    assert "has gains already" in told(capsys, "tune", tuned, *given, "--approach", "lora")[2]
    assert "has 4 experts already" in told(capsys, "tune", tuned, *given, "--approach", "peqa")[2]
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_the_earlier_export(
    tuned, workload, pictures, tmp_path, capsys, monkeypatch
):
    folder = shutil.copytree(tuned, tmp_path / "model")
    before = {f.name: f.read_bytes() for f in (folder / "unet").iterdir()}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("quantarena.bench.personalise.lesson.NoiseLoss.of", stop)
    given = ("--images", pictures, "--token", "red", "--bits", "w4", "-o", folder)
    assert "use --force" in told(capsys, "tune", workload, *given)[2]
    assert told(capsys, "tune", workload, *given, "--force")[0] == 130
    assert {f.name: f.read_bytes() for f in (folder / "unet").iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def made(name, folder):
    tiny_pipelines.save(name, folder)
    settings = {
        "steps": 2,
        "guidance": 3.0,
        "resolution": 16,
        "conditions": {"kind": "prompt", "values": ["a red cat"]},
    }
    (folder / "workload.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("name", ["sdxl", "pixart-sigma"])
def test_other_layouts_are_tuned_and_drawn_from(name, pictures, tmp_path, capsys):
    """Several tokenizers, sizes as conditions; a transformer that predicts a variance too."""
    given = ("--images", pictures, "--token", "red", "--bits", "w4", "-o", tmp_path / "out")
    code, _, err = told(capsys, "tune", made(name, tmp_path / name), *given, *FAST)
    assert code == 0, err
    code, _, err = told(capsys, "sample", tmp_path / "out", "-n", 1, "-o", tmp_path / "x.png")
    assert code == 0, err


def test_flow_matching_is_refused(pictures, tmp_path, capsys):
    given = ("--images", pictures, "--token", "red", "--bits", "w4", "-o", tmp_path / "out")
    code, _, err = told(capsys, "tune", made("sd3", tmp_path / "sd3"), *given, *FAST)
    assert (code, err.count("\n")) == (2, 1)
    assert "models of flow matching cannot be tuned" in err


def test_a_network_learns_the_same_on_the_device(workload, pictures, tmp_path, card, monkeypatch):
    monkeypatch.setattr(personalise, "peak_of", lambda call, place: (call(), card.peak)[1])
    subject = ("--images", pictures, "--token", "blue", "--bits", "w4", *FAST)
    for name, place in (("cpu", ()), ("cuda", ("--device", "cuda"))):
        assert card.peak == 0
        assert run([*map(str, ("tune", workload, *subject, *place, "-o", tmp_path / name))]) == 0
    assert card.peak > 0, "nothing ran on the card"
    ours, theirs = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("cpu", "cuda")
    )
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not value.equal(theirs[name])] == []
    assert "--device cuda" in open_exported(tmp_path / "cuda").meta["command"]


def test_tune_cannot_be_offloaded(workload, pictures, tmp_path, card, capsys):
    given = ("--images", pictures, "--token", "blue", "--bits", "w4", "-o", tmp_path / "out")
    code, _, err = told(capsys, "tune", workload, *given, "--device", "cuda", "--offload")
    assert code == 2
    assert "tune learns the whole network at once, and --offload has one block" in err
    assert card.peak == 0, "nothing ran before"
