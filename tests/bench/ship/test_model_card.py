"""The README of an export: read by model hubs, and ready to be uploaded. Nothing is sent."""

import json

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from quantarena.bench.cli.main import run
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.ship.model_card import card
from quantarena.bench.ship.scored_row import scores_of
from quantarena.bench.spec import Cell
from quantarena.bench.store import Store
from quantarena.bench.workloads import registry

SCORES = {
    "row": "abc",
    "measurements": [
        {
            "name": "psnr",
            "value": 31.25,
            "low": 30.5,
            "high": 32.0,
            "n": 8,
            "unit": "dB",
            "board": "fidelity",
            "reference": "fp",
        },
        {
            "name": "kid/effnet-lite0",
            "value": 0.0125,
            "low": None,
            "high": None,
            "n": 8,
            "unit": "",
            "board": "quality",
            "reference": "photos | 12",
        },
    ],
    "latency": {
        "ratio": 1.5,
        "ratio_low": 1.4,
        "ratio_high": 1.6,
        "step_ms": 12.0,
        "fp_setting": "fp32 channels_last",
        "batch": 16,
        "threads": 1,
        "rounds": 20,
    },
    "device": "a processor",
}


@pytest.fixture
def made(pixel_folder):
    def make(scores=SCORES, base="pixel"):
        meta = {"base_model": base, "bits": "w4a8", "method": "rtn", "title": "RTN"}
        document = {"meta": meta | {"scores": scores}, "bytes": {"file": 1_000_000}}
        return card(document, registry.resolve(str(pixel_folder)), "DDIMPipeline")

    return make


def test_a_hub_reads_the_front_matter(made):
    data = ModelCard(made()).data
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"quantarena", "diffusers:DDIMPipeline", "w4a8"} <= set(data.tags)
    assert data.base_model == "pixel"
    assert data.base_model_relation == "quantized"
    validate_repo_id(data.base_model)


def test_a_hub_indexes_the_measured_numbers(made):
    found = {one.metric_type: one for one in ModelCard(made()).data.eval_results}
    assert found["psnr"].metric_value == 31.25
    assert found["psnr"].task_type == "unconditional-image-generation"
    assert found["kid/effnet-lite0"].metric_name == "kid/effnet-lite0 (quality)"


def test_a_reader_sees_the_intervals(made):
    text = made()
    assert "| fidelity | psnr | 31.25 dB | 30.5 to 32 | 8 | fp |" in text
    assert r"| quality | kid/effnet-lite0 | 0.0125 | - | 8 | photos \| 12 |" in text
    assert "1.5 times as fast as full precision at its fastest setting there" in text
    assert "95 % interval 1.4 to 1.6, 20 paired rounds" in text
    assert "DiffusionPipeline.from_pretrained" in text
    assert text.index("import quantarena") < text.index("from diffusers import")


def test_without_a_run_there_are_no_numbers(made):
    text = made(scores={})
    assert "Measured" not in text
    assert ModelCard(text).data.eval_results is None


def test_a_name_that_no_repository_can_have_is_left_out(made):
    assert ModelCard(made(base="My own model!")).data.base_model is None


def row(seed, key, images):
    value = Measurement("psnr", 30.0 + seed, 29.0, 31.0, n=images, unit="dB", reference="fp")
    bare = Measurement("ssim", None, reason="too small")
    cell = Cell("pixel", "rtn", "w4a8", seed=seed)
    return Row(cell, Status.OK, measurements=(value, bare), stage_keys={"quantize": key})


def test_the_row_with_the_same_codes_and_most_images_is_taken(tmp_path):
    wanted = row(1, "ours", 32)
    for name, one in (("a", row(0, "ours", 8)), ("b", wanted), ("b", row(2, "another", 64))):
        Store(tmp_path / name).put(one)
    found = scores_of(tmp_path, "ours")
    assert found["row"] == wanted.key
    assert [(one["name"], one["value"], one["n"]) for one in found["measurements"]] == [
        ("psnr", 31.0, 32)
    ]
    assert found["latency"] is None
    assert scores_of(tmp_path, "nobody's") == {}
    assert scores_of(tmp_path / "nowhere", "ours") == {}


@pytest.mark.slow
def test_an_export_has_the_numbers_of_the_run_that_drew_with_its_codes(pixel_folder, tmp_path):
    results = tmp_path / "results"
    small = ["--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2"]
    small += ["--range-samples", "4"]
    words = ["run", "smoke", "--workload", str(pixel_folder), "--method", "rtn", "--bits", "w4a8"]
    words += ["--images", "8", "--executor", "local", "--results", str(results), "--name", "mine"]
    assert run([*words, *small]) == 0
    rows = [json.loads(f.read_text()) for f in (results / "mine" / "rows").glob("*.json")]
    drawn = next(row for row in rows if row["cell"]["method"] == "rtn")
    words = ["quantize", str(pixel_folder), "--method", "rtn", "--bits", "w4a8", *small, "-q"]
    out = tmp_path / "out"
    assert run([*words, "--cache", str(results / ".cache"), "-o", str(out)]) == 0
    entry = json.loads((out / "unet/config.json").read_text())["quantization_config"]
    assert entry["meta"]["scores"]["row"] == drawn["key"]
    assert "| fidelity | psnr |" in (out / "README.md").read_text()
    assert ModelCard.load(out / "README.md").data.eval_results


def test_the_folder_is_ready_to_be_uploaded(shipped, monkeypatch):
    """``upload_folder`` collects the files and reads the card; the request itself is caught."""
    sent, collect = {}, HfApi._prepare_upload_folder_additions

    def collected(self, *args, **more):
        sent["files"] = [one.path_in_repo for one in collect(self, *args, **more)]
        raise InterruptedError

    def validate(self, content, **more):
        sent["card"] = content

    monkeypatch.setattr(HfApi, "_prepare_upload_folder_additions", collected)
    monkeypatch.setattr(HfApi, "_validate_yaml", validate)
    with pytest.raises(InterruptedError):
        HfApi(token="none").upload_folder(repo_id="me/model", folder_path=str(shipped))
    assert {
        "README.md",
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    } <= set(sent["files"])
    assert not [name for name in sent["files"] if name.startswith(".") or " " in name]
    assert ModelCard(sent["card"]).data.library_name == "diffusers"
