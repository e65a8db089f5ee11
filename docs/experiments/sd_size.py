"""Measures what it takes to quantize a U-Net of Stable Diffusion 1.x's size (docs/workloads.md).

The weights are random, in the layout and the sizes of Stable Diffusion 1.5: 860 million parameters
on 64x64 latents, 77 tokens of 768 numbers. The tokenizer and the small decoder are emoji-t2i's, as
neither is quantized.

    python docs/experiments/sd_size.py write sd-size --dtype bfloat16     # a pipeline folder
    quantarena plan quick --workload sd-size --method rtn --bits w4a8
    python docs/experiments/sd_size.py quantize sd-size --method rtn --bits w4a8
    python docs/experiments/sd_size.py write two-levels --widths 320 640 --latents 32

The second script line does what ``quantarena quantize`` does, in this process, and prints for each
stage its wall time, its processor time and the largest resident memory. Growth is counted from the
state in which the pipeline is loaded in float32 and has drawn the calibration images, and divided
by the bytes of the float32 weights. ``while quantizing`` is the row's own ``peak_bytes``: what the
method adds, from wrapping the network to its frozen codes (``bench/memory.py``).
"""

import argparse
import json
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from quantarena.bench.memory import resident_bytes, trim
from quantarena.bench.plan import lookup
from quantarena.bench.ship.quantize_model import Order, quantize_model
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.workloads import registry

LIKE = "emoji-t2i"
"""The workload whose tokenizer, sampler and decoder are used."""
TOKENS, WIDTH, LATENTS = 77, 768, 64
WIDTHS = (320, 640, 1280, 1280)
PROMPTS = ("a red apple", "a cat in snow", "a blue house", "a green tree")
INTERVAL = 0.02
"""Seconds between two looks at the resident memory."""


def unet(widths: tuple[int, ...], latents: int) -> Any:
    """A U-Net of Stable Diffusion's design with random weights; 1.5 has ``WIDTHS``."""
    from diffusers import UNet2DConditionModel

    inner = len(widths) - 1  # the smallest resolution has no attention
    return UNet2DConditionModel(
        sample_size=latents,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * inner + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * inner,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )


def text_encoder(vocabulary: int) -> Any:
    """Two layers of a CLIP text encoder with random weights, as wide as that of version 1.5."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=12,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def write(
    folder: Path, dtype: torch.dtype, seed: int, widths: tuple[int, ...], latents: int
) -> None:
    """Write the pipeline folder with its settings."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(seed)
    small = StableDiffusionPipeline.from_pretrained(registry.resolve(LIKE).path)
    tokenizer = small.tokenizer
    tokenizer.model_max_length = TOKENS
    parts = {"unet": unet(widths, latents), "text_encoder": text_encoder(len(tokenizer))}
    pipe = StableDiffusionPipeline(
        **{**small.components, **parts, "tokenizer": tokenizer}, requires_safety_checker=False
    )
    pipe.to(dtype).save_pretrained(folder)
    size = latents * pipe.vae_scale_factor
    settings = {
        "title": f"Random weights, Stable Diffusion's design, widths {widths}",
        "steps": 20,
        "guidance": 7.5,
        "resolution": size,
        "conditions": {"kind": "prompt", "values": PROMPTS},
    }
    (folder / registry.SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
    count = sum(p.numel() for p in pipe.unet.parameters())
    print(f"{folder}: U-Net of {count / 1e6:.1f} M parameters in {dtype}, {size}x{size} pixels")


class Watch:
    """Looks at the resident memory all the time, and says which stage it belongs to."""

    def __init__(self) -> None:
        self.stage, self.loaded = "load, record", 0
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, tuple[float, float]] = {}
        self._since, self._over = _clocks(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(INTERVAL):
            stage = self.stage
            self.peaks[stage] = max(self.peaks.get(stage, 0), resident_bytes())

    def progress(self, stage: str, done: int, total: int) -> None:
        """What the stages call; the one after recording traces the network."""
        print(f"{stage} {done}/{total}", flush=True)
        if stage == "record" and done == total:
            trim()
            self.loaded, stage = resident_bytes(), "trace"
        if stage == "pack" and done == total:
            stage = "write"
        self.enter(stage)

    def enter(self, stage: str) -> None:
        """Go on to a stage."""
        now = _clocks()
        wall, core = self.seconds.get(self.stage, (0.0, 0.0))
        self.seconds[self.stage] = wall + now[0] - self._since[0], core + now[1] - self._since[1]
        self.stage, self._since = stage, now

    def close(self) -> None:
        """End the last stage."""
        self._over.set()
        self._thread.join()
        self.enter("")


def _clocks() -> tuple[float, float]:
    """Seconds of the wall and of the processor, all threads."""
    return time.perf_counter(), time.process_time()


def quantize(cell: Cell, folder: Path, cache: Path) -> None:
    """Quantize, pack, check and write the model, and print what that took."""
    watch = Watch()
    with closing(watch):
        made = quantize_model(Order(cell, folder, cache, (), "", replace=True), watch.progress)
    meta = made["meta"]
    floats = meta["observed"]["fp_bytes"]

    def share(size: int) -> str:
        return f"{size / 1e9:7.2f} GB {size / floats:6.2f}x"

    print(f"{cell.method} {cell.bits}, {cell.budget}, {dict(cell.options)}")
    print(f"float32 weights     {share(floats)}")
    print(f"resident, loaded    {share(watch.loaded)}")
    for stage, peak in watch.peaks.items():
        grown = share(max(0, peak - watch.loaded))
        wall, core = watch.seconds[stage]
        print(f"{stage:13} {wall:7.0f} s, {core:7.0f} core-s  peak {share(peak)}  growth {grown}")
    print(f"while quantizing    {share(meta['calibration']['peak_bytes'])}")
    print(f"packed network      {share(meta['observed']['packed_bytes'])}")
    print(f"file                {share(made['bytes']['file'])}")
    wall, core = (sum(column) for column in zip(*watch.seconds.values(), strict=True))
    print(f"parity {meta['parity']:.1e}, backend {meta['backend']}")
    print(f"in all {wall:.0f} s, {core:.0f} core-s")


def main() -> None:
    """Run one of the two verbs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("write")
    made.add_argument("folder", type=Path)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of the U-Net's levels")
    made.add_argument("--latents", type=int, default=LATENTS, help="side of the latents")
    ran = verbs.add_parser("quantize")
    ran.add_argument("folder", type=Path)
    ran.add_argument("--method", default="rtn")
    ran.add_argument("--bits", default="w4a8")
    ran.add_argument("--steps", type=int, default=2)
    ran.add_argument("--images", type=int, default=1, help="calibration images")
    ran.add_argument("--samples", type=int, default=4, help="calibration points to learn from")
    ran.add_argument("--iterations", type=int, default=2)
    ran.add_argument("--option", action="append", default=[], metavar="METHOD.NAME=VALUE")
    ran.add_argument("--output", "-o", type=Path, help="keep the written folder here")
    given = parser.parse_args()
    if given.verb == "write":
        dtype = getattr(torch, given.dtype)
        write(given.folder, dtype, given.seed, tuple(given.widths), given.latents)
        return
    budget = Budget(
        steps=given.steps,
        calibration_images=given.images,
        calibration_samples=given.samples,
        iterations=given.iterations,
    )
    pairs = lookup.method_options(given.option, (given.method,), (), prefer_plugin=False)
    name = lookup.canonical_workload(str(given.folder), ())
    options = dict(pairs).get(given.method, ())
    cell = Cell(name, given.method, given.bits, budget=budget, options=options)
    with tempfile.TemporaryDirectory() as work:
        quantize(cell, given.output or Path(work) / "packed", Path(work) / "cache")


if __name__ == "__main__":
    main()
