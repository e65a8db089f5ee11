"""A workload with the setting ``lora``: its name, its keys, and what is drawn with it."""

import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantarena.bench.adapters import drawing, request
from quantarena.bench.adapters.request import LoraRequest
from quantarena.bench.cli.main import run as command
from quantarena.bench.errors import BrokenModel, QuantArenaError, UserError
from quantarena.bench.workloads import registry, workload_name

TINY = Path(__file__).parent.parent / "tiny_pipelines.py"


@pytest.fixture
def weights(tmp_path):
    """A file that looks like one of diffusers; only its tensors' names and shapes are read."""
    from safetensors.torch import save_file

    (tmp_path / "style").mkdir()
    pair = {"unet.a.to_q.lora_A.weight": torch.zeros(2, 8)}
    pair["unet.a.to_q.lora_B.weight"] = torch.zeros(8, 2)
    save_file(pair, tmp_path / "style" / "pytorch_lora_weights.safetensors")
    return tmp_path / "style"


@pytest.fixture
def peft_or_not(monkeypatch):
    """Names and keys need no peft: pretend that it is installed."""
    monkeypatch.setattr(request, "peft_is_there", lambda: True)


def test_equal_requests_have_equal_names(weights, peft_or_not, monkeypatch):
    monkeypatch.chdir(weights.parent)
    names = [
        workload_name.with_options("emoji-t2i", (f"lora={text}",))
        for text in ("style@0.80", "./style@.8", f"{weights}@8e-1")
    ]
    assert names == [f"emoji-t2i?lora={weights}@0.8"] * 3
    whole = workload_name.with_options("emoji-t2i", ("lora=style@1",))
    assert whole == f"emoji-t2i?lora={weights}"
    assert workload_name.shown(names[0]) == "emoji-t2i?lora=style@0.8"
    info = registry.resolve(names[0])
    assert (info.lora, info.name) == (f"{weights}@0.8", names[0])
    assert registry.resolve("emoji-t2i").lora == ""
    assert info.noise_name == registry.resolve("emoji-t2i").noise_name


def test_another_file_of_the_same_name_is_another_content(weights, peft_or_not):
    from safetensors.torch import save_file

    from quantarena.bench.plan.lookup import content_of

    def content(text):
        return content_of(registry.resolve(f"emoji-t2i?lora={text}"))

    before = content(weights)
    assert content(f"{weights}@0.5") != before
    shutil.copytree(weights, weights.parent / "copy")
    assert content(weights.parent / "copy") == before, "its place is not what it draws"
    pair = {"unet.a.to_q.lora_A.weight": torch.ones(2, 8)}
    pair["unet.a.to_q.lora_B.weight"] = torch.ones(8, 2)
    save_file(pair, weights / "pytorch_lora_weights.safetensors")
    assert content(weights) != before


def test_a_path_may_hold_an_at_sign(weights, peft_or_not):
    other = weights.rename(weights.parent / "style@2")
    assert LoraRequest.read(str(other)) == LoraRequest(other, 1.0)
    assert LoraRequest.read(f"{other}@0.5") == LoraRequest(other, 0.5)
    assert LoraRequest.read(LoraRequest(other, 0.5).text()) == LoraRequest(other, 0.5)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nowhere", "lora=.*nowhere is no folder and no file"),
        ("style@strong", "lora=style@strong: it reads FOLDER or FOLDER@SCALE"),
        ("style@nan", "lora=style@nan: it reads FOLDER"),
        ("empty", "empty holds no .safetensors file"),
        ("two", "two holds 2 .safetensors files: name the one that is meant"),
        ("note.txt", "note.txt is no .safetensors file"),
    ],
)
def test_what_is_no_lora_is_refused_at_once(text, line, weights, peft_or_not, monkeypatch):
    monkeypatch.chdir(weights.parent)
    for folder, files in {"empty": (), "two": ("a", "b")}.items():
        Path(folder).mkdir()
        for file in files:
            (Path(folder) / f"{file}.safetensors").touch()
    Path("note.txt").touch()
    with pytest.raises(UserError, match=line):
        registry.resolve(workload_name.with_options("emoji-t2i", (f"lora={text}",)))


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text.encode() + data


PAIR = '{"unet.a.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "no intact safetensors file"),
        (b"no such thing at all", "its 20 bytes begin with no head"),
        (b"PK\x03\x04" + bytes(100), "no intact safetensors file"),
        (header("[]" + " " * 20), "its head is no JSON object"),
        (header('{"a": 3}'), "no intact safetensors file"),
        (header('{"a": {}}'), "'data_offsets' is missing in its head"),
        (header('{"a": ' + "[" * 50_000), "no intact safetensors file"),
        (header(PAIR, bytes(5)), "it has 93 bytes of 96"),
        (header(PAIR, bytes(9)), "it has 97 bytes of 96"),
        (header("{}"), "holds no LoRA: none of its 0 tensors"),
        (header(PAIR.replace("lora_A", "conv"), bytes(8)), "holds no LoRA: none of its 1 tensors"),
    ],
)
def test_a_file_that_holds_no_lora_is_refused_at_once(data, line, weights, peft_or_not):
    file = weights / "pytorch_lora_weights.safetensors"
    file.write_bytes(data)
    with pytest.raises(BrokenModel) as caught:
        registry.resolve(f"emoji-t2i?lora={weights}")
    assert line in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_the_verbs_refuse_it_before_any_work(verb, weights, peft_or_not, tmp_path, capsys):
    (weights / "pytorch_lora_weights.safetensors").write_bytes(b"no such thing at all")
    results = tmp_path / "results"
    asked = ("--workload", "emoji-t2i", "--set", f"lora={weights}", "--results", str(results))
    assert command([verb, "smoke", *asked]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "its 20 bytes begin with no head" in err
    assert not list(results.glob("*/rows"))


def test_a_plan_with_a_lora_imports_no_torch(weights):
    code = """
import sys
from quantarena.bench.adapters import request
request.peft_is_there = lambda: True
from quantarena.bench.workloads import registry
assert registry.resolve(f"emoji-t2i?lora={sys.argv[1]}").lora == sys.argv[1]
assert not {"torch", "safetensors"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(weights)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_outliers_and_a_lora_exclude_each_other(weights, peft_or_not):
    with pytest.raises(UserError, match="lora fits the model without outliers"):
        registry.resolve(f"emoji-t2i?lora={weights}&outliers=4")


def test_without_peft_a_plan_says_what_to_install(weights, monkeypatch):
    monkeypatch.setattr(request, "peft_is_there", lambda: False)
    with pytest.raises(UserError, match=r"needs peft: pip install 'quantarena\[lora\]'"):
        registry.resolve(f"emoji-t2i?lora={weights}")


def test_facts_are_those_of_the_file(weights, peft_or_not):
    found = drawing.facts(f"{weights}@0.5")
    assert (found.name, found.scale, found.layers, found.values) == ("style", 0.5, 1, 32)
    (weights / "pytorch_lora_weights.safetensors").write_bytes(b"no such thing")
    with pytest.raises(BrokenModel, match=r"weights\.safetensors cannot be read"):
        drawing.facts(str(weights))


def test_other_tensors_are_no_lora(weights, peft_or_not):
    from safetensors.torch import save_file

    save_file({"conv.weight": torch.zeros(2)}, weights / "pytorch_lora_weights.safetensors")
    with pytest.raises(BrokenModel, match="holds no LoRA: none of its 1 tensors is a factor"):
        drawing.facts(str(weights))


@pytest.mark.parametrize("verb", ["quantize", "tune"])
def test_verbs_that_would_leave_it_out_refuse_it(verb):
    with pytest.raises(UserError, match=f"{verb} takes the base model, and lora=style@0.5 is none"):
        drawing.refuse_lora("/x/style@0.5", verb)


def test_peft_is_in_no_key_without_a_lora():
    from quantarena.bench.closure import closure

    for module in ("stages.record", "stages.fp_images", "stages.sample", "stages.quantize"):
        found = closure(f"quantarena.bench.{module}")
        assert "peft" not in found.libraries
        assert "quantarena.bench.adapters.layer" not in found.files
    own = closure(drawing.REGISTER)
    assert "quantarena.bench.adapters.layer" in own.files
    assert "peft" in own.libraries


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed"
)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """Stable Diffusion with random weights, and a LoRA of it in a folder beside it."""
    from diffusers import DiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    root = tmp_path_factory.mktemp("text")
    folder = runpy.run_path(str(TINY))["save"]("sd1", root / "sd1")
    values = {"kind": "prompt", "values": ["a red cat", "a dog in snow"]}
    settings = {"steps": 2, "guidance": 3.0, "resolution": 16, "conditions": values}
    (folder / "workload.json").write_text(json.dumps(settings))
    pipe = DiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(1)
    targets = ["to_q", "to_v", "conv1"]
    pipe.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    )
    pipe.save_lora_weights(root / "style", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder


@pytest.fixture
def styled(text_model):
    return f"{text_model}?lora={text_model.parent / 'style'}@0.5"


@needs_peft
def test_evaluation_has_it_and_calibration_has_not(text_model, styled):
    from quantarena.bench.spec import Budget, Cell
    from quantarena.bench.stages.workspace import open_workspace
    from quantarena.bench.workloads.sampling import draw_images

    budget = Budget(images=2, batch=2, steps=2, calibration_images=2)
    plain, with_it = (
        open_workspace(Cell(name, "rtn", "w8a8", budget=budget))
        for name in (str(text_model), styled)
    )
    double = replace(with_it, info=replace(with_it.info, lora=with_it.info.lora[:-3] + "0.25"))
    for calibration in (True, False):
        draw = plain.draw(calibration=calibration)
        assert (plain.key(draw) == with_it.key(draw)) is calibration
        assert (double.key(draw) == with_it.key(draw)) is calibration
        one, other, again = (draw_images(w.loaded, w.info, draw) for w in (plain, with_it, plain))
        assert torch.equal(one.images, again.images)
        assert torch.equal(one.images, other.images) is calibration
        assert one.noise_sha256 == other.noise_sha256
    before = with_it.loaded.denoiser.state_dict()
    assert before.keys() == plain.loaded.denoiser.state_dict().keys()


@needs_peft
def test_a_cell_draws_with_it_on_the_codes_of_the_plain_cell(text_model, styled, tmp_path):
    from quantarena.bench.schema import Status
    from quantarena.bench.spec import Budget, Cell
    from quantarena.bench.stages import sequence

    budget = Budget(
        images=2,
        batch=2,
        steps=2,
        calibration_images=2,
        calibration_samples=4,
        iterations=1,
        latency_rounds=5,
    )
    paths = sequence.Paths(tmp_path / "results", tmp_path / "cache")
    rows = {}
    for name in (str(text_model), styled):
        cell = Cell(name, "rtn", "w8a8", budget=budget)
        rows[name] = sequence.run_cell(cell, paths, progress=lambda *_: None)
        assert rows[name].status is Status.OK, rows[name].reason
    plain, with_it = rows.values()
    assert plain.stage_keys["quantize"] == with_it.stage_keys["quantize"]
    assert plain.stage_keys["images"] != with_it.stage_keys["images"]
    assert plain.cell.key != with_it.cell.key
    assert "lora" not in plain.workload
    said = with_it.workload["lora"]
    assert (said["name"], said["scale"]) == ("style", 0.5)
    assert said["layers"] == sum(name.endswith("to_q") for name in _layers(text_model)) * 2 + sum(
        name.endswith("conv1") for name in _layers(text_model)
    )
    timed = sequence.time_cell(with_it, paths, progress=lambda *_: None)
    assert timed.latency is not None


def _layers(folder):
    from diffusers import UNet2DConditionModel

    return [
        name for name, _ in UNet2DConditionModel.from_pretrained(folder / "unet").named_modules()
    ]


@needs_peft
def test_a_lora_of_another_model_is_refused(text_model, weights):
    from quantarena.bench.workloads import pipeline

    loaded = pipeline.load(registry.resolve(str(text_model)))
    before = list(loaded.denoiser.state_dict())
    drawn = drawing.drawing_with(loaded.pipe, str(weights))
    with pytest.raises(QuantArenaError, match="style"), drawn:
        pass
    assert list(loaded.denoiser.state_dict()) == before


@needs_peft
def test_pipelines_without_a_place_for_it_are_skipped(class_folder, text_model, weights):
    from quantarena.bench.workloads import pipeline
    from quantarena.methods.core.errors import Unsupported

    loaded = pipeline.load(registry.resolve(str(class_folder)))
    with (
        pytest.raises(Unsupported, match="DiTPipeline takes no LoRA"),
        drawing.drawing_with(loaded.pipe, str(weights)),
    ):
        pass
    loaded = pipeline.load(registry.resolve(str(text_model)))
    loaded.put(torch.nn.Identity())
    with (
        pytest.raises(Unsupported, match="a Identity in the place of unet takes no LoRA"),
        drawing.drawing_with(loaded.pipe, str(weights)),
    ):
        pass
