"""The verb ``gate`` on tiny pipelines: exit codes, what it tells, and what it refuses."""

import json
import shutil
from xml.etree import ElementTree

import pytest

from quantarena.bench.cli.main import run

FAST = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2", "-q")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


def quantized(workload, folder, cache, bits):
    words = ["quantize", str(workload), "--method", "rtn", "--bits", bits, "-o", str(folder)]
    assert run([*words, "--cache", str(cache), *FAST]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(pixel_folder, cache, tmp_path_factory):
    return quantized(pixel_folder, tmp_path_factory.mktemp("exports") / "w2", cache, "w2a8")


@pytest.fixture
def gate(pixel_folder, cache, capsys):
    def call(folder, *words, against=None):
        capsys.readouterr()
        given = ["gate", str(folder), "--against", str(against or pixel_folder)]
        code = run([*given, "--cache", str(cache), "-n", "8", "--batch", "4", "-q", *words])
        return code, *capsys.readouterr()

    return call


def test_the_verdict_is_the_exit_code(gate, exported, tmp_path):
    code, out, _ = gate(exported, "--max-lpips", "2", "--min-psnr", "1")
    assert code == 0
    assert out.startswith(f"gate passed: {exported}")
    assert "lpips/alex-v0.1 <= 2 kept" in out
    file = tmp_path / "ci" / "gate.xml"
    code, out, _ = gate(exported, "--min-psnr", "90", "--max-lpips", "2", "--junit", str(file))
    assert code == 1
    assert "psnr >= 90 broken" in out
    suite = ElementTree.parse(file).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["psnr >= 90"]


def test_an_open_check_passes_unless_it_is_strict(gate, exported):
    _, out, _ = gate(exported, "--min-psnr", "1", "--json")
    check = json.loads(out)["checks"][0]
    assert check["low"] < check["value"] < check["high"]
    # a limit within the interval, but not so near to the mean that no number of images decides
    bound = str((check["value"] + check["low"]) / 2)
    code, out, _ = gate(exported, "--min-psnr", bound)
    assert code == 0
    assert "open" in out
    assert "images would decide" in out
    code, out, _ = gate(exported, "--min-psnr", bound, "--strict", "--json")
    said = json.loads(out)
    assert (code, said["passed"]) == (1, False)
    assert said["checks"][0]["needed"] > 8


def test_full_precision_is_at_no_distance_from_itself(gate, pixel_folder):
    code, out, _ = gate(pixel_folder, "--max-lpips", "0", "--min-ssim", "1", "--steps", "2")
    assert code == 0, out
    assert "diffusers, fp32 weights" in out


def test_speed_is_timed_in_turns(gate, exported):
    assert gate(exported, "--min-speedup", "0.001", "--rounds", "8")[0] == 0
    code, out, _ = gate(exported, "--min-speedup", "1000", "--rounds", "8")
    assert code == 1
    assert "speedup >= 1000 broken" in out
    assert "of 8 rounds" in out


def test_bytes_are_those_that_memory_holds(gate, exported, pixel_folder):
    said = json.loads(gate(exported, "--max-lpips", "2", "--json")[1])
    same = json.loads(gate(pixel_folder, "--max-lpips", "2", "--steps", "2", "--json")[1])
    assert said["bytes"] < same["bytes"] == said["fp_bytes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no limit is given"),
        (("--max-lpips", "nan"), "--max-lpips"),
        (("--max-lpips", "-1"), "--max-lpips"),
        (("--min-psnr", "inf"), "--min-psnr must be a number"),
        (("--min-speedup", "1", "--rounds", "4"), "--rounds"),
    ],
)
def test_what_makes_no_sense_is_refused(gate, exported, words, said):
    code, out, err = gate(exported, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_no_pipeline_is_refused(gate, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        code, _, err = gate(folder, "--max-lpips", "1")
        assert code == 2
        assert len(err.splitlines()) == 1
        assert str(folder) in err


def test_other_weights_than_it_was_made_from_are_named(gate, exported, pixel_folder, tmp_path):
    other = shutil.copytree(pixel_folder, tmp_path / "other")
    settings = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    settings["beta_end"] = 0.03
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    manifest = other / "manifest.json"
    manifest.unlink(missing_ok=True)
    code, _, err = gate(exported, "--max-lpips", "2", against=other)
    assert code == 0
    assert "made from other weights or another sampler" in err


def test_a_network_of_another_kind_is_refused(gate, class_folder, exported):
    code, _, err = gate(exported, "--max-lpips", "2", against=class_folder)
    assert code == 2
    assert "give the model that it was made from" in err
