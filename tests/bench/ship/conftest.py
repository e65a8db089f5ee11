"""Exports of tiny pipelines, made once a session by the command line."""

import json
import re
import runpy
from pathlib import Path

import pytest

FAST = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "--steps", "2", "-q")

STEPPED = """
from quantarena.methods.api import CalibrationPlan, Capabilities, Method, MethodInfo, PerCall
from quantarena.methods.api import calibrate_activations, minmax_range, register

@register("stepped")
class Stepped(Method):
    info = MethodInfo(title="Stepped", venue="-", paper="-", summary="a range a sampler call")
    supports = Capabilities()

    def quantize(self, ctx):
        model = ctx.wrap()
        model.set_weight_ranges(minmax_range)
        plan = CalibrationPlan(per_call=True)
        calibrate_activations(model, ctx.draw(PerCall(2)), minmax_range, plan)
        return model
"""


@pytest.fixture(scope="session")
def ship(tmp_path_factory):
    """Export a folder: ``ship(source, name, method, bits, *more)`` gives the export's folder."""
    from quantarena.bench.cli.main import run

    root = tmp_path_factory.mktemp("shipped")

    def export(source, name, method="rtn", bits="w4a8", *more):
        folder = root / name
        words = ["quantize", str(source), "--method", method, "--bits", bits, "-o", str(folder)]
        assert run([*words, "--cache", str(root / "cache"), *FAST, *more]) == 0
        return folder

    return export


@pytest.fixture(scope="session")
def shipped(pixel_folder, ship):
    """A pixel U-Net by a method that splits the layers behind skip concatenations."""
    return ship(pixel_folder, "pixel", "q_diffusion")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Stable Diffusion with random weights at 16x16, and its settings."""
    made = runpy.run_path(str(Path(__file__).parent.parent / "tiny_pipelines.py"))
    folder = made["save"]("sd1", tmp_path_factory.mktemp("text") / "sd1")
    values = {"kind": "prompt", "values": ["a red cat", "a dog in snow"]}
    settings = {"steps": 2, "guidance": 3.0, "resolution": 16, "conditions": values}
    (folder / "workload.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def stepped(pixel_folder, ship, tmp_path_factory):
    """The same network with ranges by sampler call, for two calls."""
    plugin = tmp_path_factory.mktemp("plugins") / "stepped.py"
    plugin.write_text(STEPPED)
    return ship(pixel_folder, "stepped", "stepped", "w8a8", "--plugin", str(plugin))


@pytest.fixture(scope="session")
def pixels():
    """Draw two images with a pipeline without conditions, always from the same noise."""
    import torch

    def draw(pipe, steps=2):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        output = pipe(
            batch_size=2, num_inference_steps=steps, generator=generator, output_type="pt"
        )
        return output.images.float()

    return draw


@pytest.fixture
def edit():
    """Change a JSON file: ``edit(file, function)``."""

    def change(file, function):
        document = json.loads(file.read_text())
        function(document)
        file.write_text(json.dumps(document))

    return change


PATH_LINE = re.compile(rb' *"_name_or_path": "[^"]*",\n')
"""Where diffusers itself writes the folder that a component was loaded from."""


@pytest.fixture(scope="session")
def same_files():
    """Whether two folders hold the same files with the same bytes.

    With ``moved``, the folder that diffusers names in its own configurations may differ.
    """

    def content(file, moved):
        data = file.read_bytes()
        return PATH_LINE.sub(b"", data) if moved and file.suffix == ".json" else data

    def compare(one, other, *, moved=False):
        found = [
            {
                file.relative_to(folder).as_posix(): content(file, moved)
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
            for folder in (one, other)
        ]
        assert found[0], "something is compared"
        names = found[0].keys() | found[1].keys()
        assert [n for n in sorted(names) if found[0].get(n) != found[1].get(n)] == []

    return compare
