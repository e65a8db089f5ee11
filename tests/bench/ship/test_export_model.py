"""The verb ``export-model``: what it refuses, and what it writes where OpenVINO is installed."""

import importlib.util
import json

import pytest
import torch

from quantarena.bench.cli.main import run
from quantarena.bench.ship import export_model as export
from quantarena.bench.ship.packed_network import PackedNetwork
from quantarena.bench.ship.pipeline_folder import open_exported
from quantarena.methods.runtimes.plain_layers import plain_network

FAST = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2", "-q")
has_openvino = importlib.util.find_spec("openvino") is not None
has_onnx = importlib.util.find_spec("onnxruntime") is not None
needs_openvino = pytest.mark.skipif(not has_openvino, reason="openvino is not installed")
needs_onnx = pytest.mark.skipif(not has_onnx, reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def exported(pixel_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    words = ["quantize", str(pixel_folder), "--method", "rtn", "--bits", "w8a8", "-o"]
    assert run([*words, str(place / "w8"), "--cache", str(place / "cache"), *FAST]) == 0
    return place / "w8"


def told(capsys, *words):
    capsys.readouterr()
    code = run([str(word) for word in words])
    return code, *capsys.readouterr()


def test_a_loaded_network_becomes_one_of_diffusers_own_class(exported):
    """Converters call it, and the class for packed networks would ask it for its clock."""
    packed = open_exported(exported).packed
    found = plain_network(packed).module
    assert isinstance(packed.module, PackedNetwork)
    assert not isinstance(found, PackedNetwork)
    with torch.no_grad():
        (output,) = found(torch.randn(2, 3, 16, 16), torch.tensor([5, 5]), return_dict=False)
    assert output.shape == (2, 3, 16, 16)


@needs_openvino
def test_the_folder_has_a_model_that_runs_in_int8(exported, tmp_path, capsys):
    out = tmp_path / "ov"
    code, said, err = told(capsys, "export-model", exported, "-o", out, "-n", "2", "--rounds", "3")
    assert code == 0, err
    assert "layers in integers" in said
    assert {f.name for f in out.iterdir()} == {"model.xml", "model.bin", "export.json"}
    document = json.loads((out / "export.json").read_text())
    assert document["layers"] > 40
    assert document["lpips_mean"] <= 0.002
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    network = openvino.Core().compile_model(out / "model.xml", "CPU", settings)
    found = network([torch.randn(3, 3, 16, 16).numpy(), torch.tensor([5, 5, 5]).numpy()])[0]
    assert found.shape == (3, 3, 16, 16), "any number of rows"


def test_a_disturbed_timing_is_told(tmp_path, capsys, monkeypatch):
    made = {"layers": 3, "bytes": 9, "step_ms": 1.0, "packed_step_ms": 2.0, "lpips_mean": 0.0}
    made |= {"lpips_max": 0.0, "warning": "another process worked on these cores"}
    monkeypatch.setattr(export, "export_model", lambda order, progress: made)
    code, said, err = told(capsys, "export-model", tmp_path, "-o", tmp_path / "out", "-q")
    assert code == 0
    assert "another process worked on these cores" in err
    assert "3 layers in integers" in said
    made["warning"] = ""
    assert told(capsys, "export-model", tmp_path, "-o", tmp_path / "out", "-q")[2] == ""


@needs_onnx
def test_the_folder_has_an_onnx_model(exported, tmp_path, capsys):
    out = tmp_path / "onnx"
    words = ("export-model", exported, "--to", "onnx", "-o", out, "-n", "2", "--rounds", "3")
    code, said, err = told(capsys, *words)
    assert code == 0, err
    assert "layers in integers" in said
    assert {f.name for f in out.iterdir()} == {"model.onnx", "export.json"}
    document = json.loads((out / "export.json").read_text())
    assert document["runtime"].startswith("onnxruntime ")
    assert document["lpips_mean"] <= 0.002
    import onnxruntime

    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    given = {"sample": torch.randn(3, 3, 16, 16).numpy(), "timestep": torch.full((3,), 5).numpy()}
    assert session.run(None, given)[0].shape == (3, 3, 16, 16), "any number of rows"


@needs_openvino
def test_an_output_that_exists_is_kept(exported, tmp_path, capsys):
    code, _, err = told(capsys, "export-model", exported, "-o", tmp_path)
    assert code == 2
    assert f"{tmp_path} exists" in err


@pytest.mark.parametrize(
    ("runtime", "absent"), [("openvino", not has_openvino), ("onnx", not has_onnx)]
)
def test_without_its_library_it_says_what_to_install(exported, tmp_path, capsys, runtime, absent):
    if not absent:
        pytest.skip(f"{runtime} is installed")
    words = ("export-model", exported, "--to", runtime, "-o", tmp_path / "out")
    code, _, err = told(capsys, *words)
    assert code == 2
    assert f"{runtime} is not installed: pip install" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"), [(("--to", "onyx"), "unknown runtime"), (("-n", "0"), "--images")]
)
def test_what_makes_no_sense_is_refused(exported, tmp_path, capsys, words, said):
    code, _, err = told(capsys, "export-model", exported, "-o", tmp_path / "ov", *words)
    assert code == 2
    assert said in err
