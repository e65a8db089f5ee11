"""What others quantized, from the file to the row and the verdict: diffusers' folders and GGUF."""

import json
import runpy
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quantarena.bench.cli.main import run
from quantarena.methods.builtin import INSTALL
from quantarena.methods.rivals import saved

tiny_pipelines = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))
)
FAST = ("--images", "8", "--samples", "4", "--range-samples", "4", "--calibration-images", "2")
KINDS = {"torchao": "torchao", "quanto": "optimum-quanto"}
LAYERS = 19
"""Linear layers of the transformer that its library quantizes."""


def need(distribution):
    try:
        version(distribution)
    except PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed: {INSTALL}")


def settings_of(kind):
    import diffusers

    if kind == "quanto":
        return diffusers.QuantoConfig(weights_dtype="int8")
    from torchao.quantization import Int8WeightOnlyConfig

    return diffusers.TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(scope="module", params=KINDS)
def quantized(request, class_folder, tmp_path_factory):
    """A pipeline folder whose transformer diffusers quantized while it loaded it, and saved."""
    need(KINDS[request.param])
    import diffusers

    transformer = diffusers.DiTTransformer2DModel.from_pretrained(
        class_folder,
        subfolder="transformer",
        quantization_config=settings_of(request.param),
        torch_dtype=torch.float32,
    )
    folder = tmp_path_factory.mktemp("diffusers") / request.param
    pipe = diffusers.DiTPipeline.from_pretrained(class_folder, transformer=transformer)
    pipe.save_pretrained(folder)
    shutil.copy(class_folder / "workload.json", folder)
    return request.param, folder, transformer


def row_of(where, against, tmp_path):
    words = ["run", "smoke", "--workload", where, "--against", against, *FAST, "--name", "judged"]
    words += ["--steps", "2", "--executor", "local", "--results", tmp_path]
    assert run([*map(str, words)]) == 0
    rows = [json.loads(f.read_text()) for f in (tmp_path / "judged" / "rows").glob("*.json")]
    found = {row["cell"]["method"]: row for row in rows}
    assert set(found) == {"fp", "folder"}
    return found


def test_a_folder_of_diffusers_is_a_row_whose_bytes_are_those_of_its_tensors(
    quantized, class_folder, tmp_path
):
    kind, folder, transformer = quantized
    rows = row_of(folder, class_folder, tmp_path)
    row = rows["folder"]
    assert row["status"] == "ok", row["reason"]
    assert row["cell"]["bits"] == "w8a16"
    assert row["backend"] == f"diffusers, {kind}"
    linear = [m for m in transformer.modules() if isinstance(m, nn.Linear)]
    codes = sum(m.weight.numel() for m in linear)
    held, full = row["observed"]["packed_bytes"], row["observed"]["fp_bytes"]
    assert full - 4 * codes + codes < held < full - 2 * codes, "a byte for each weight, and scales"
    assert row["calibration"]["libraries"] == {KINDS[kind]: version(KINDS[kind])}
    psnr = next(m["value"] for m in row["measurements"] if m["name"] == "psnr")
    assert 20 < psnr < 120, "near full precision, and not full precision itself"


def test_a_folder_of_diffusers_passes_the_gate(quantized, class_folder, tmp_path, capsys):
    kind, folder, _ = quantized
    words = ["gate", folder, "--against", class_folder, "--min-psnr", "10", "-n", "4", "--json"]
    assert run([*map(str, words), "--cache", str(tmp_path), "-q"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["backend"] == f"diffusers, {kind}"


def written(folder, config):
    """A pipeline folder whose transformer says that it is quantized."""
    (folder / "transformer").mkdir(parents=True)
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    document = {"_class_name": "DiTTransformer2DModel", "quantization_config": config}
    (folder / "transformer" / "config.json").write_text(json.dumps(document))
    return folder


def test_a_quantized_folder_is_no_workload_of_its_own(tmp_path, capsys):
    folder = written(tmp_path / "q", {"quant_method": "quanto"})
    assert run(["plan", "smoke", "--workload", str(folder), "--set", "classes=0-1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"run --workload {folder} --against BASE" in said


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_library_is_named_by_both_verbs(
    kind, tmp_path, capsys, monkeypatch, class_folder
):
    folder = written(tmp_path / "q", {"quant_method": kind})
    monkeypatch.setattr(saved, "installed", lambda name: None)
    for words in (
        ("gate", folder, "--against", class_folder, "--max-lpips", "1"),
        ("run", "smoke", "--workload", folder, "--against", class_folder),
    ):
        assert run([*map(str, words)]) == 2
        said = capsys.readouterr().err
        assert f"{folder} needs {KINDS[kind]}, which is not installed: {INSTALL}" in said


def test_against_takes_one_quantized_folder(tmp_path, class_folder, capsys):
    for given in ([], ["--workload", "a", "--workload", "b"], ["--workload", str(tmp_path / "no")]):
        assert run(["run", "smoke", *given, "--against", str(class_folder)]) == 2
        assert "compares one quantized folder or .gguf file" in capsys.readouterr().err


def write_gguf(file, network, kind):
    """All linear layers of whole blocks in a quantized type of GGUF, the rest in F32."""
    import gguf

    writer, count = gguf.GGUFWriter(str(file), "sd1"), 0
    linear = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    for name, tensor in network.state_dict().items():
        values = tensor.float().numpy()
        if name in linear and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            count += 1
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def wide():
    """Stable Diffusion's layout, wide enough for GGUF's blocks of 32 numbers."""
    import diffusers

    pipe = tiny_pipelines.PIPELINES["sd1"]()
    config = dict(pipe.unet.config) | {"block_out_channels": (32, 64), "norm_num_groups": 8}
    pipe.unet = diffusers.UNet2DConditionModel.from_config(config)
    return pipe


@pytest.fixture(scope="module")
def prompt_folder(tmp_path_factory):
    folder = tiny_pipelines.write(wide, tmp_path_factory.mktemp("wide") / "sd1")
    conditions = {"kind": "prompt", "values": ["a red cat", "a dog in snow"]}
    settings = {"steps": 2, "resolution": 16, "conditions": conditions}
    (folder / "workload.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def unet(prompt_folder):
    import diffusers

    return diffusers.UNet2DConditionModel.from_pretrained(prompt_folder, subfolder="unet")


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def gguf_file(request, unet, tmp_path_factory):
    need("gguf")
    import gguf

    file = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    count = write_gguf(file, unet, getattr(gguf.GGMLQuantizationType, request.param))
    return file, count


def test_a_gguf_file_is_a_row(gguf_file, prompt_folder, tmp_path):
    file, count = gguf_file
    row = row_of(file, prompt_folder, tmp_path)["folder"]
    assert row["status"] == "ok", row["reason"]
    assert row["cell"]["bits"] == f"w{file.stem[1]}a16"
    assert row["backend"] == "diffusers, gguf"
    assert row["calibration"]["libraries"] == {"gguf": version("gguf")}
    assert row["observed"]["packed_bytes"] < row["observed"]["fp_bytes"]
    assert count > 10


def test_a_gguf_file_is_held_against_limits(gguf_file, prompt_folder, tmp_path, capsys):
    words = ["gate", gguf_file[0], "--against", prompt_folder, "--min-psnr", "10", "-n", "4"]
    assert run([*map(str, words), "--cache", str(tmp_path), "-q"]) == 0
    assert "(diffusers, gguf, " in capsys.readouterr().out


def test_a_class_without_single_files_is_named(gguf_file, class_folder, tmp_path, capsys):
    words = ["gate", gguf_file[0], "--against", class_folder, "--min-psnr", "10", "-n", "4"]
    assert run([*map(str, words), "--cache", str(tmp_path), "-q"]) == 2
    assert "diffusers reads no GGUF file into a DiTTransformer2DModel" in capsys.readouterr().err


def test_a_damaged_gguf_file_is_one_line(prompt_folder, tmp_path, capsys):
    need("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(40))
    words = ["gate", file, "--against", prompt_folder, "--min-psnr", "10", "-n", "4"]
    assert run([*map(str, words), "--cache", str(tmp_path), "-q"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(file) in said
    assert "does not load in diffusers" in said
