"""From a model to a packed folder that diffusers loads: compare, choose, quantize, load, draw.

    python examples/ship_a_model.py                      # emoji-t2i, a few minutes on two cores
    python examples/ship_a_model.py --workload path/to/pipeline --methods rtn,ptqd --bits w4a8

Everything that it does is a verb of the command line, so each step can be repeated by hand; the
script prints them. A run that was interrupted goes on where it stopped.
"""

import argparse
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

import quantarena  # lets diffusers read packed weights
from quantarena.bench.cli import run
from quantarena.bench.plan.presets import preset


def main() -> None:
    """Read the options and walk through the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="emoji-t2i", help="a name or a pipeline folder")
    parser.add_argument("--methods", default="rtn,q_diffusion", help="two methods or more")
    parser.add_argument("--bits", default="w4a8", help="one pair of widths")
    parser.add_argument("--images", type=int, default=16, help="images that are compared")
    parser.add_argument("--prompt", default="red heart", help="of the pictures at the end")
    parser.add_argument("--out", type=Path, default=Path("results/shipped"), help="folder")
    parser.add_argument("--set", action="append", default=[], help="a setting, KEY=VALUE")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    best = compare(given)
    packed = export(given, best)
    images = draw(packed, given.prompt, count=4)
    images.save(given.out / "images.png")
    print(f"{given.out / 'images.png'}: the packed network's images")


def verb(*words: str) -> None:
    """Run a verb of the command line as its own process would, and stop where it fails."""
    print(f"$ quantarena {shlex.join(words)}", flush=True)
    if code := run(words):
        raise SystemExit(code)


def compare(given: argparse.Namespace) -> str:
    """Run the methods under one protocol; returns the one that ranks first."""
    results = ["--results", str(given.out)]
    settings = [word for one in given.set for word in ("--set", one)]
    words = "-".join(("compared", Path(given.workload).name, given.bits, *given.set))
    name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", words)  # other settings are another comparison
    verb(
        *("run", "smoke", "--name", name, "--workload", given.workload),
        *("--method", given.methods, "--bits", given.bits, "--images", str(given.images)),
        *settings,
        *results,
    )
    ranking = json.loads((given.out / name / "ranking.json").read_text())
    standings = [each for board in ranking["boards"] for each in board["standings"]]
    if not standings:
        raise SystemExit("no method finished, so none can be shipped")
    if len(standings) > 1:
        names = [standing["contestant"] for standing in standings[:2]]
        verb("compare", *names, "--in", name, *results)
    return str(standings[0]["method"])


def export(given: argparse.Namespace, method: str) -> Path:
    """Quantize with the budget of the comparison: calibration comes from its cache."""
    budget = preset("smoke").grid.budget
    packed: Path = given.out / "packed"
    verb(
        *("quantize", given.workload, "--method", method, "--bits", given.bits),
        *("--samples", str(budget.calibration_samples)),
        *("--calibration-images", str(budget.calibration_images)),
        *("--range-samples", str(budget.range_samples)),
        *("--iterations", str(budget.iterations)),
        *("--steps", str(budget.steps)),
        *(word for one in given.set for word in ("--set", one)),
        *("--cache", str(given.out / ".cache"), "-o", str(packed), "--force"),
    )
    return packed


def draw(packed: Path, prompt: str, count: int) -> Image.Image:
    """Load the folder as anybody would, and draw; images stand side by side."""
    pipe = DiffusionPipeline.from_pretrained(packed)
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, "unet", None) or pipe.transformer
    network.record_step()  # a step without Python, as the comparison timed it
    bytes_held = sum(tensor.nbytes for tensor in network.state_dict().values())
    print(
        f"quantarena {quantarena.__version__}: {type(pipe).__name__} with "
        f"{network.num_parameters():,} parameters in {bytes_held / 1e6:.1f} MB"
    )
    steps = preset("smoke").grid.budget.steps  # the calls that the codes are calibrated for
    arguments: dict[str, Any] = {"num_inference_steps": steps}
    for name, value in (("prompt", prompt), ("class_labels", [0])):
        if name in inspect.signature(pipe.__call__).parameters:
            arguments[name] = value
    images = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        images += pipe(generator=generator, **arguments).images[:1]
    return side_by_side(images)


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """One picture of several of one size."""
    width, height = images[0].size
    sheet = Image.new("RGB", (width * len(images), height))
    for number, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (number * width, 0))
    return sheet


if __name__ == "__main__":
    main()
