"""One cell from the pipeline folder to the row, on a tiny network."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

from quantarena.bench.devices.choose import Choice
from quantarena.bench.schema import Row, Status
from quantarena.bench.stages import fp_images as fp_images_module
from quantarena.bench.stages import latency, latents, sample, sequence
from quantarena.bench.stages.fp_images import fp_images
from quantarena.methods.rtn import RoundToNearest


def quiet(stage, done, total):
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def row(cell, paths):
    return sequence.run_cell(cell, paths, progress=quiet)


@pytest.fixture
def plugin(tmp_path):
    """A plug-in file with one method whose quantize is the given statement."""

    def write(body):
        file = tmp_path / "mine.py"
        file.write_text(
            "from quantarena.methods.rtn import RoundToNearest\n"
            "from quantarena.methods.registry import register\n"
            "@register('mine')\nclass Mine(RoundToNearest):\n"
            "    def quantize(self, ctx):\n"
            f"        model = super().quantize(ctx)\n        {body}\n        return model\n"
        )
        return (str(file),)

    return write


def test_prepare_makes_what_cells_share(cell, paths):
    seconds = sequence.prepare(cell, paths, progress=quiet)
    assert set(seconds) == {"record", "fp_images", "fp_probe", "fp_floor", "reference"}
    made = sorted(p.name.split("-")[0] for p in paths.cache.iterdir())
    assert made.count("trajectory") == made.count("images") == made.count("floor") == 1
    before = {p: p.stat().st_mtime_ns for p in paths.cache.iterdir()}
    sequence.prepare(cell, paths, progress=quiet)
    assert {p: p.stat().st_mtime_ns for p in paths.cache.iterdir()} == before


def test_a_row_has_everything(row, paths, pixel_folder):
    assert row.status is Status.OK, row.reason
    assert row.reason is None
    assert row.backend in {"packed", "reference"}
    assert row.parity.max_rel <= row.parity.limit
    assert row.parity.layers == row.observed.layers > 40
    assert sum(row.observed.coverage.values()) == pytest.approx(1)
    assert set(row.observed.coverage) == {"w4a8", "w8a8", "fp"}
    assert row.observed.packed_bytes < row.observed.fp_bytes
    psnr = next(m for m in row.measurements if "psnr" in m.name)
    assert psnr.n == 4
    sqnr = row.measurement("noise-sqnr")
    assert 0 < sqnr.low <= sqnr.value <= sqnr.high < 60
    assert row.measurement("latent-mse").value > 0
    assert psnr.low <= psnr.value <= psnr.high
    kid = next(m for m in row.measurements if "kid" in m.name)
    assert kid.value is None
    assert "no reference images" in kid.reason
    ranges = row.calibration["ranges"]
    assert sum(ranges["steps"].values()) == ranges["points"] == 4 * 3, "all that was recorded"
    assert ranges["images"] == 4
    assert row.workload["steps"] == 3
    assert row.method["origin"] == "builtin"
    assert {"quantize", "pack", "parity", "sample", "score"} <= set(row.seconds)
    assert set(row.stage_keys) == {"quantize", "images"}
    images = sorted((paths.results / row.artefacts["images"]).glob("*.png"))
    assert len(images) == 4
    scores = np.load(paths.results / row.artefacts["scores"])
    assert scores["curve:noise-sqnr"].shape == (3, 4)
    assert scores["curve:noise-sqnr"].mean() == pytest.approx(sqnr.value)
    assert scores[psnr.name].mean() == pytest.approx(psnr.value, rel=1e-3)
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_second_run_quantizes_and_samples_nothing(row, cell, paths, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("done once already")

    monkeypatch.setattr(RoundToNearest, "quantize", refuse)
    monkeypatch.setattr(sample, "draw_images", refuse)
    monkeypatch.setattr(fp_images_module, "draw_images", refuse)
    again = sequence.run_cell(cell, paths, progress=quiet)
    assert again.status is Status.OK, again.reason
    assert again.measurements == row.measurements
    assert again.observed == row.observed
    assert again.parity == row.parity
    assert again.calibration == row.calibration
    assert again.stage_keys == row.stage_keys


@pytest.mark.parametrize("change", [{"bits": "w8a8"}, {"seed": 1}, {"budget": 4}])
def test_what_changes_the_model_changes_its_key(row, cell, paths, monkeypatch, change):
    called = []
    if "budget" in change:
        change = {"budget": replace(cell.budget, calibration_samples=change["budget"])}

    def stop(*args, **kwargs):
        called.append(1)
        raise RuntimeError("stop here")

    monkeypatch.setattr(RoundToNearest, "quantize", stop)
    assert sequence.run_cell(replace(cell, **change), paths, progress=quiet).status is Status.FAILED
    assert called


def test_full_precision_row_is_the_reference(cell, paths):
    row = sequence.run_cell(replace(cell, method="fp", bits="fp"), paths, progress=quiet)
    assert row.status is Status.OK, row.reason
    assert row.backend == "fp32"
    assert row.parity is None
    assert row.observed.coverage == {"fp": pytest.approx(1)}
    ssim = next(m for m in row.measurements if "ssim" in m.name)
    assert ssim.value == pytest.approx(1)
    scores = np.load(paths.results / row.artefacts["scores"])
    assert any(name.startswith("floor:") for name in scores)
    floors = {m.name for m in row.measurements if m.board == "floor"}
    assert {"floor/bf16/psnr", "floor/seed/psnr", "floor/bf16/noise-sqnr"} <= floors
    inside = {m.name: m.value for m in row.measurements}
    assert inside["noise-sqnr"] == 120
    assert inside["latent-mse"] == 0


def test_q_diffusion_row(cell, paths):
    row = sequence.run_cell(replace(cell, method="q_diffusion"), paths, progress=quiet)
    assert row.status is Status.OK, row.reason
    assert row.calibration["notes"]["reconstruction"]["weights"]
    again = sequence.run_cell(replace(cell, method="q_diffusion"), paths, progress=quiet)
    assert again.parity == row.parity, "split layers come back from the cache as they were"
    assert again.measurements == row.measurements


def test_unsupported_is_skipped_before_anything_expensive(cell, tmp_path):
    paths = sequence.Paths(tmp_path / "r", tmp_path / "c")
    row = sequence.run_cell(replace(cell, bits="w1a8"), paths, progress=quiet)
    assert row.status is Status.SKIPPED
    assert "does not quantize weights to 1 bits" in row.reason
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom (mine.py:7)"),
        ("raise KeyError('lost')", "KeyError: 'lost' (mine.py:7)"),
        ("open('/no/such/file')", "FileNotFoundError"),
        (
            "next(iter(model.layers.values())).parts[0].weight_quantizer.scale.fill_(float('nan'))",
            "linear_1 has a weight scale that is not positive",
        ),
        ("model.layers['conv_in'].bias.data.fill_(float('nan'))", "parity|NaN|differ"),
        ("return None", "AttributeError"),
    ],
)
def test_a_broken_method_is_a_failed_row(row, cell, paths, plugin, body, reason):
    import re

    found = sequence.run_cell(
        replace(cell, method="mine"), paths, plugins=plugin(body), progress=quiet
    )
    assert found.status is Status.FAILED
    assert re.search(reason.replace("(", r"\(").replace(")", r"\)"), found.reason), found.reason
    assert "\n" not in found.reason
    assert found.method["origin"] == "plugin mine.py"
    assert not [p for p in paths.cache.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError('x')",
        "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')",
        "RuntimeError('CUDA error: out of memory')",
    ],
)
def test_out_of_memory_has_its_own_status(row, cell, paths, plugin, error):
    found = sequence.run_cell(
        replace(cell, method="mine"), paths, plugins=plugin(f"raise {error}"), progress=quiet
    )
    assert found.status is Status.OOM


def test_unsupported_inside_quantize_is_skipped(row, cell, paths, plugin):
    body = "from quantarena.methods.core.errors import Unsupported; raise Unsupported('not today')"
    found = sequence.run_cell(
        replace(cell, method="mine"), paths, plugins=plugin(body), progress=quiet
    )
    assert (found.status, found.reason) == (Status.SKIPPED, "not today")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"workload": "emoji-t3i"}, "unknown workload 'emoji-t3i'"),
        ({"method": "rtm"}, "did you mean rtn"),
        ({"policy": "unifrom"}, "did you mean uniform"),
        ({"bits": "w0a8"}, "impossible weight width"),
    ],
)
def test_wrong_names_are_failed_rows_with_one_line(row, cell, paths, change, reason):
    found = sequence.run_cell(replace(cell, **change), paths, progress=quiet)
    assert found.status is Status.FAILED
    assert reason in found.reason


def test_damaged_weights_are_a_failed_row(cell, paths, pixel_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(pixel_folder, folder)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    found = sequence.run_cell(replace(cell, workload=str(folder)), paths, progress=quiet)
    assert found.status is Status.FAILED
    assert "does not load as a diffusers pipeline" in found.reason


def test_images_of_other_noise_are_no_pairs(row, cell, paths, monkeypatch):
    original = fp_images

    def tampered(*args, **kwargs):
        return replace(original(*args, **kwargs), noise_sha256="0" * 64)

    monkeypatch.setattr(latents, "fp_images", tampered)
    found = sequence.run_cell(cell, paths, progress=quiet)
    assert found.status is Status.FAILED
    assert "images are no pairs" in found.reason


def test_interrupts_come_out(row, cell, paths, plugin):
    with pytest.raises(KeyboardInterrupt):
        sequence.run_cell(
            replace(cell, method="mine"),
            paths,
            plugins=plugin("raise KeyboardInterrupt"),
            progress=quiet,
        )


def test_time_cell_fills_latency(row, paths, monkeypatch):
    ticks = []
    timed = sequence.time_cell(row, paths, progress=lambda *tick: ticks.append(tick))
    timing = timed.latency
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high
    assert timing.step_ms > 0
    assert timing.rounds == 20
    assert timing.backend == row.backend
    assert timing.image_ms == pytest.approx(timing.step_ms * 3 / 4)
    assert ticks
    # on a busy machine timing warns of other processes, and changes nothing else
    assert replace(timed, latency=None, warnings=row.warnings) == row
    added = timed.warnings[len(row.warnings) :]
    assert timed.warnings[: len(row.warnings)] == row.warnings
    assert all(line.startswith("latency: ") for line in added)


def test_cells_of_a_workload_share_full_precisions_fastest_setting(
    row, paths, monkeypatch, tmp_path
):
    searched = []

    def search(networks, points):
        searched.append(set(networks))
        stage = {name: [1 + float(name != "fp32 channels_last")] for name in networks}
        return Choice("fp32 channels_last", (stage,))

    monkeypatch.setattr(latency, "choose", search)
    fresh = sequence.Paths(paths.results, tmp_path / "cache")
    other = replace(row, cell=replace(row.cell, seed=1))
    found = [
        sequence.time_cell(one, fresh, progress=quiet).latency.fp_setting for one in (row, other)
    ]
    assert found == ["fp32 channels_last"] * 2
    assert len(searched) == 1
    assert searched[0] >= {"fp32 eager", "fp32 channels_last"}


def test_a_setting_that_is_faster_than_the_chosen_one_is_in_the_rows_warnings(
    row, paths, monkeypatch
):
    monkeypatch.setattr(latency.Baseline, "doubt", lambda self, backend, found: f"{backend} wins")
    found = sequence.time_cell(row, paths, progress=quiet)
    assert f"latency: {row.backend} wins" in found.warnings


def test_failed_rows_are_not_timed(row, paths):
    failed = replace(row, status=Status.FAILED)
    assert sequence.time_cell(failed, paths, progress=quiet) is failed


@pytest.mark.parametrize("halves", [1, 2])
def test_timed_batch_has_each_image_with_its_guidance_halves(transformer, halves):
    recorded = replace(transformer.trajectory, halves=halves)
    batch = sequence.sampler_batch(recorded, 3)
    assert batch.image.tolist() == halves * [0, 1, 2]
    assert batch.half.tolist() == [half for half in range(halves) for _ in range(3)]
    assert set(batch.step.tolist()) == {recorded.calls // 2}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "ctx.policy.floors.clear(); return _made(ctx)",
            "the policy says",
        ),
        ("next(iter(ctx.model.parameters())).zero_(); return _made(ctx)", "changed the full-prec"),
    ],
)
def test_what_a_method_is_checked_against_is_out_of_its_reach(
    row, cell, paths, plugin, body, reason
):
    """A method edits its own policy, or the network that it should copy."""
    made = (
        "from quantarena.methods.rtn import RoundToNearest\n"
        "        _made = lambda ctx: RoundToNearest().quantize(ctx)\n"
        "        import torch\n"
        "        with torch.no_grad():\n"
        f"            {body}"
    )
    found = sequence.run_cell(
        replace(cell, method="mine"), paths, plugins=plugin(made), progress=quiet
    )
    assert found.status is Status.FAILED
    assert reason in found.reason
    fresh = sequence.run_cell(replace(cell, seed=3), paths, progress=quiet)
    assert fresh.observed.coverage.keys() == row.observed.coverage.keys()


def test_another_unit_of_the_kernels_draws_its_own_images(row, cell, paths, monkeypatch):
    other = SimpleNamespace(isa="another")
    monkeypatch.setattr(sample, "status", lambda: other)
    again = sequence.run_cell(cell, paths, progress=quiet)
    assert again.stage_keys["quantize"] == row.stage_keys["quantize"]
    assert again.stage_keys["images"] != row.stage_keys["images"]


def test_a_row_says_what_was_changed_in_its_real_images(cell, paths, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(12):
        picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 3
        picture.save(tmp_path / f"{index:02d}.jpg", exif=turned)
    given = replace(cell, workload=f"{cell.workload}?reference={tmp_path}")
    row = sequence.run_cell(given, paths, progress=quiet)
    assert (row.status, row.reason) == ("ok", None)
    for change in ("lossy file format", "turned as its EXIF orientation says"):
        assert any(change in line and "12 images" in line for line in row.warnings), row.warnings
