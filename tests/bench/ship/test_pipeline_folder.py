"""Quantize, ship, load elsewhere, draw: on tiny pipelines, through the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantarena.bench.cli.main import run
from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.ship import quantize_model
from quantarena.bench.ship.pipeline_folder import load_pipeline, open_exported
from quantarena.bench.ship.save_pipeline import check_target
from quantarena.bench.workloads import registry
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import PARITY_LIMIT
from quantarena.methods.core.record.announce import attach
from quantarena.methods.registry import entry

WEIGHTS = "diffusion_pytorch_model.safetensors"
FAST = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2", "-q")


def quantize(workload, folder, cache, *more, method="rtn", bits="w4a8"):
    arguments = ["quantize", str(workload), "--method", method, "--bits", bits, "-o", str(folder)]
    return run([*arguments, "--cache", str(cache), *FAST, *more])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def exported(pixel_folder, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "pixel-w4a8"
    # this method splits the layers behind skip concatenations
    assert quantize(pixel_folder, folder, cache, method="q_diffusion") == 0
    return folder


@pytest.fixture(scope="module")
def classes(class_folder, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "classes-w8a8"
    assert quantize(class_folder, folder, cache, bits="w8a8") == 0
    return folder


def description(folder):
    """What the folder says about its packed network."""
    return json.loads((folder / "unet" / "config.json").read_text())["quantization_config"]


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def told(capsys, *arguments):
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_folder_is_a_pipeline_with_a_packed_denoiser(exported, pixel_folder):
    names = {file.name for file in exported.iterdir()}
    assert names == {
        "README.md",
        "manifest.json",
        "model_index.json",
        "scheduler",
        "unet",
        "workload.json",
    }
    inside = {file.name for file in (exported / "unet").iterdir()}
    assert inside == {"config.json", "diffusion_pytorch_model.safetensors"}
    index = (pixel_folder / "model_index.json").read_text()
    assert (exported / "model_index.json").read_text() == index


def test_everybody_may_read_what_the_umask_lets_them(exported):
    card = (exported / "README.md").stat().st_mode
    assert {file.stat().st_mode for file in exported.rglob("*") if file.is_file()} == {card}


def test_splits_and_bits_are_kept(exported):
    document = description(exported)
    assert any("parts" in layer for layer in document["layers"].values())
    assert document["meta"]["observed"]["layers"] == len(document["layers"])
    assert document["meta"]["base_model"] == "pixel"


def test_the_card_says_what_it_is(exported, tmp_path):
    head, body = (exported / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    front = dict(line.split(": ", 1) for line in head.splitlines())
    assert front["base_model"] == '"pixel"'
    assert front["library_name"] == "diffusers"
    assert {"quantarena", "w4a8", "q_diffusion"} <= set(json.loads(front["tags"]))
    assert "license" in front
    assert "quantarena quantize pixel --method q_diffusion --bits w4a8" in body
    assert "calibration sha256" in body
    assert "bits observed" in body
    assert "/tmp" not in body


def images(pipe):
    generator = torch.Generator().manual_seed(1)
    return pipe(batch_size=2, num_inference_steps=2, generator=generator, output_type="np").images


ELSEWHERE = """
import sys
from pathlib import Path
import quantarena
assert "torch" not in sys.modules
import torch
torch.set_num_threads(1)
pipe = quantarena.load_pipeline(sys.argv[1])
generator = torch.Generator().manual_seed(1)
images = pipe(batch_size=2, num_inference_steps=2, generator=generator, output_type="np").images
torch.save(torch.from_numpy(images), sys.argv[2])
"""


def test_another_machine_draws_the_same_pictures(exported, tmp_path):
    """A process with an empty home and no cache, and a folder that has moved."""
    moved = shutil.copytree(exported, tmp_path / "elsewhere" / "model")
    home = tmp_path / "home"
    home.mkdir()
    hidden = {name for name in os.environ if name.startswith(("HF_", "XDG_", "TORCH_"))}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    kept |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(moved), str(tmp_path / "images.pt")],
        capture_output=True,
        text=True,
        check=False,
        env=kept,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    here = torch.from_numpy(images(load_pipeline(exported)))
    assert torch.equal(torch.load(tmp_path / "images.pt"), here)


@pytest.mark.parametrize("method", ["rtn", "tuneqdm"])
def test_weights_alone_are_exported_and_drawn_from(method, pixel_folder, cache, tmp_path, capsys):
    """A model that runs at w4a16 ships at w4a16: same pictures, a quarter of the bytes."""
    folder = tmp_path / "model"
    assert quantize(pixel_folder, folder, cache, method=method, bits="w4a16") == 0
    opened = open_exported(folder)
    assert opened.packed.backend == "weight-only"
    assert {bits.act for bits in opened.packed.widths().values()} == {FP_WIDTH}
    observed = opened.meta["observed"]
    assert observed["packed_bytes"] == opened.packed.bytes()
    assert observed["coverage"].keys() <= {"w4a16", "w8a16", "fp"}
    assert opened.meta["parity"] <= PARITY_LIMIT
    drawn = images(opened.loaded.pipe)
    assert torch.isfinite(torch.from_numpy(drawn)).all()
    assert drawn.std() > 0
    text = (folder / "README.md").read_text()
    assert "this saves memory, not time" in text
    assert "runs on integer kernels" not in text
    code, out, err = told(capsys, "sample", folder, "-n", 2, "-o", tmp_path / "x.png", "--json")
    assert code == 0, err
    assert json.loads(out)["backend"] == "weight-only"


@pytest.mark.parametrize("method", ["rtn", "tuneqdm"])
def test_weights_alone_draw_from_the_folder_what_they_draw_in_memory(
    method, pixel_folder, cache, tmp_path, monkeypatch, diffusers
):
    """Every bit of the pictures: the folder holds the same codes, and the same code runs them."""
    made = []

    def kept(model):
        made.append(pack(model))
        return made[0]

    monkeypatch.setattr(quantize_model, "pack", kept)
    folder = tmp_path / "model"
    assert quantize(pixel_folder, folder, cache, method=method, bits="w4a16") == 0
    (packed,) = made
    assert packed.backend == "weight-only"
    pipe = diffusers.DDIMPipeline.from_pretrained(pixel_folder)
    plain = images(pipe)
    pipe.unet = packed.module
    attach(pipe.scheduler, packed.clock)
    here, there = images(pipe), images(load_pipeline(folder))
    assert np.array_equal(here, there)
    assert not np.array_equal(here, plain)


def test_sample_draws_a_grid(exported, tmp_path, capsys):
    file = tmp_path / "new" / "grid.png"
    code, out, err = told(capsys, "sample", exported, "-n", 3, "-o", file, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["images"] == 3
    assert found["steps"] == 2
    assert Image.open(file).size == (34, 34)
    again = tmp_path / "again.png"
    assert told(capsys, "sample", exported, "-n", 3, "-o", again)[0] == 0
    assert again.read_bytes() == file.read_bytes()
    assert told(capsys, "sample", exported, "-n", 3, "-o", again, "--seed", 1)[0] == 0
    assert again.read_bytes() != file.read_bytes()


def test_prompts_of_a_class_model(classes, tmp_path, capsys):
    file = tmp_path / "grid.png"
    code, out, _ = told(capsys, "sample", classes, "-n", 3, "-o", file, "--json")
    assert code == 0
    assert json.loads(out)["prompts"] == ["3", "5", "7"]
    arguments = ("sample", classes, "-n", 2, "-o", file, "--json", "--prompt", "9")
    assert json.loads(told(capsys, *arguments)[1])["prompts"] == ["9", "9"]
    code, _, err = told(capsys, "sample", classes, "-o", file, "--prompt", "a dog")
    assert code == 2
    assert "class numbers" in err


def test_prompts_that_nobody_takes(exported, tmp_path, capsys):
    code, _, err = told(capsys, "sample", exported, "-o", tmp_path / "x.png", "--prompt", "a dog")
    assert code == 2
    assert err.startswith("error: ")
    assert "without prompts" in err


def test_an_earlier_export_is_kept_unless_forced(exported, pixel_folder, cache, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "model")
    assert quantize(pixel_folder, folder, cache) == 2
    assert "--force" in capsys.readouterr().err
    assert quantize(pixel_folder, folder, cache, "--force", "--json", bits="w8a8") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["meta"]["bits"] == "w8a8"
    assert open_exported(folder).meta == document["meta"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_an_earlier_export_outlives_a_kill_between_two_renames(exported, tmp_path):
    """The state that ``put_in_place`` leaves there: the earlier folder has another name."""
    folder, aside = tmp_path / "model", tmp_path / ".model-abcd1234.before"
    shutil.copytree(exported, aside)
    registry.resolve(str(folder))
    assert open_exported(folder).meta == open_exported(exported).meta
    folder.rename(aside)
    with pytest.raises(UserError, match="holds a quantized model"):
        check_target(folder, replace=False)
    folder.rename(aside)
    assert run(["sample", str(folder), "-o", str(tmp_path / "x.png"), "-n", "1", "-q"]) == 0
    (tmp_path / "x.png").unlink()
    folder.rename(aside)
    assert load_pipeline(folder) is not None
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_an_earlier_export_stays_where_the_new_one_cannot_be_put(
    exported, pixel_folder, cache, tmp_path, capsys, monkeypatch
):
    folder, rename = shutil.copytree(exported, tmp_path / "model"), os.replace

    def fails(source, target):
        if str(source).endswith(".work") and Path(target) == folder:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails)
    assert quantize(pixel_folder, folder, cache, "--force", bits="w8a8") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert open_exported(folder).meta == open_exported(exported).meta
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"bits": "w16a8"}, "do not pack: weights need 1 to 8 bits"),
        ({"bits": "fp"}, "do not pack: weights need 1 to 8 bits"),
        ({"bits": "w4"}, "unknown bits"),
        ({"bits": "w1a8"}, "does not quantize weights to 1 bits"),
        ({"method": "rtm"}, "did you mean rtn"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(pixel_folder, cache, tmp_path, capsys, more, line):
    assert quantize(pixel_folder, tmp_path / "out", cache, **more) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_method_that_breaks_is_one_line_and_exit_code_1(
    pixel_folder, cache, tmp_path, capsys, monkeypatch
):
    def breaks(self, ctx):
        raise ValueError("no such layer")

    monkeypatch.setattr(entry("rtn").method, "quantize", breaks)
    assert quantize(pixel_folder, tmp_path / "out", cache, "--seed", "5") == 1
    told = capsys.readouterr().err
    assert "rtn failed: ValueError: no such layer" in told
    assert not (tmp_path / "out").exists()


def test_fewer_points_than_asked_are_said(pixel_folder, cache, tmp_path, capsys):
    assert quantize(pixel_folder, tmp_path / "out", cache, "--samples", "4000") == 0
    line = "calibrated on all 4 points recorded; 4000 were asked"
    assert f"warning: {line}" in capsys.readouterr().err
    document = description(tmp_path / "out")
    assert document["meta"]["warnings"] == [line]


@pytest.mark.parametrize(
    ("victim", "line"),
    [
        ("model_index.json", "no diffusers pipeline"),
        ("unet/config.json", "holds no quantized model"),
        (f"unet/{WEIGHTS}", "missing|no weights"),
        ("scheduler/scheduler_config.json", "missing"),
    ],
)
def test_a_missing_file_is_one_line(copy, victim, line):
    (copy / victim).unlink()
    with pytest.raises(BrokenModel, match=line):
        load_pipeline(copy)


@pytest.mark.parametrize("victim", ["unet/config.json", f"unet/{WEIGHTS}"])
def test_an_edited_file_is_one_line(copy, victim, capsys):
    file = copy / victim
    file.write_bytes(file.read_bytes() + b" ")
    code, _, err = told(capsys, "sample", copy)
    assert code == 2
    assert "damaged" in err
    assert err.count("\n") == 1


def test_a_network_that_diffusers_does_not_have(copy):
    (copy / "manifest.json").unlink()
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet9D"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenModel, match="UNet9D, which this diffusers does not have"):
        load_pipeline(copy)
    index["unet"] = ["os", "system"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenModel, match="must be a network of diffusers"):
        load_pipeline(copy)


def test_options_of_the_method_are_in_the_model_and_its_command(pixel_folder, cache, tmp_path):
    given = ("--option", "ptq4dm.mse_ranges=false")
    digests = {}
    for name, more in (("plain", ()), ("changed", given)):
        assert quantize(pixel_folder, tmp_path / name, cache, *more, method="ptq4dm") == 0
        document = description(tmp_path / name)
        digests[name] = (tmp_path / name / "unet" / WEIGHTS).read_bytes()
        assert document["meta"]["options"] == ({"mse_ranges": "false"} if more else {})
        assert ("--option ptq4dm.mse_ranges=false" in document["meta"]["command"]) == bool(more)
    assert digests["plain"] != digests["changed"]
    assert "mse_ranges=false" in (tmp_path / "changed" / "README.md").read_text()


def test_an_option_that_the_method_does_not_have(pixel_folder, cache, tmp_path, capsys):
    given = ("--option", "ptq4dm.mse_range=false")
    assert quantize(pixel_folder, tmp_path / "m", cache, *given, method="ptq4dm") == 2
    assert "did you mean mse_ranges?" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_folder_that_is_none(tmp_path, capsys):
    code, _, err = told(capsys, "sample", tmp_path / "none")
    assert code == 2
    assert "is no folder" in err


def test_weights_that_are_no_numbers_are_refused(pixel_folder, cache, tmp_path, capsys):
    folder = tmp_path / "packed"
    assert quantize(pixel_folder, folder, cache) == 0
    packed = open_exported(folder)
    with torch.no_grad():
        next(p for p in packed.packed.module.parameters()).fill_(float("nan"))
    packed.packed.module.save_pretrained(folder / "unet")
    (folder / "manifest.json").unlink()
    with pytest.raises(BrokenModel, match="holds NaN or infinity"):
        load_pipeline(folder)
    code, _, err = told(capsys, "sample", folder, "-o", tmp_path / "grid.png")
    assert code == 2
    assert "holds NaN or infinity" in err
