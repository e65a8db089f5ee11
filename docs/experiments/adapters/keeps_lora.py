"""Does the winner keep your LoRA? A LoRA trained on full precision, on quantized networks.

The LoRA is a style: emoji-t2i learns to draw with rotated colour channels, whatever the prompt.
peft and diffusers train it on the float network, as users do, and diffusers saves it. Then the
stages of `quantarena run` draw with and without it: methods calibrate on the network without the
LoRA, and images of both sides have it.

    python docs/experiments/adapters/keeps_lora.py results/lora            # trains it
    python docs/experiments/adapters/keeps_lora.py results/lora --table    # prints the table

It needs peft: pip install 'quantarena[lora]'.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quantarena.bench.metrics.names import LPIPS, SQNR
from quantarena.bench.personalise.lesson import NoiseLoss, examples
from quantarena.bench.personalise.subject import Subject
from quantarena.bench.plan.presets import PRESETS
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.stages import sequence
from quantarena.bench.workloads import emoji64, pipeline, registry, workload_name
from quantarena.methods.tuning import TunedNetwork

WORKLOAD = "emoji-t2i"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "ff.net.0.proj", "ff.net.2"]
CELLS = (("rtn", "w8a8"), ("rtn", "w4a8"), ("q_diffusion", "w4a8"))
ACCUMULATE = 4


def subjects(side: int, count: int) -> list[Subject]:
    """Drawings of the training set with rotated channels, each with its own caption."""
    rows = emoji64.records("train")
    chosen = rows[:: max(1, len(rows) // count)][:count]
    pixels = torch.from_numpy(emoji64.load_images(chosen, side)).permute(0, 3, 1, 2)
    turned = pixels[:, [2, 0, 1]].contiguous()
    return [Subject("", row.caption, turned[at : at + 1].clone()) for at, row in enumerate(chosen)]


def train(folder: Path, given: argparse.Namespace) -> None:
    """Train the LoRA and save it as diffusers does."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    info = registry.resolve(WORKLOAD)
    loaded = pipeline.load(info)
    network: Any = loaded.denoiser
    lessons = examples(loaded, info, subjects(info.resolution, given.drawings))
    loss = NoiseLoss(loaded.pipe.scheduler, lessons, ACCUMULATE, given.seed)
    torch.manual_seed(given.seed)
    config = LoraConfig(r=given.rank, lora_alpha=given.rank, target_modules=TARGETS)
    network.add_adapter(config)
    tuned = TunedNetwork(network, {}, 1, loss.horizon)
    learns = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=given.lr)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, given.updates)
    print(f"before: {loss.mean(tuned, 2):.4f}; {sum(p.numel() for p in learns)} values learn")
    for update in range(given.updates):
        optimiser.zero_grad()
        for number in range(ACCUMULATE):
            (loss.of(tuned, update, number) / ACCUMULATE).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falling.step()
    print(f"after {given.updates} updates: {loss.mean(tuned, 2):.4f}")
    loaded.pipe.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(network),
        unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
    )


def value(row: Row, name: str) -> str:
    """A measurement with its interval."""
    found = next(m for m in row.measurements if m.name == name)
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def table(root: Path, lora: Path, given: argparse.Namespace) -> None:
    """Draw and score the cells with and without the LoRA, and print a line for each."""
    budget = replace(PRESETS["quick"].grid.budget, images=given.images, iterations=given.iterations)
    paths = sequence.Paths(root / "rows", root / "cache")
    print("| LoRA | method | bits | LPIPS to full precision | noise SQNR, dB |")
    print("|---|---|---|---|---|")
    for workload in (WORKLOAD, workload_name.with_options(WORKLOAD, (f"lora={lora}",))):
        for method, bits in CELLS:
            cell = Cell(workload, method, bits, given.seed, budget=budget)
            row = sequence.run_cell(cell, paths, progress=lambda *_: None)
            if row.status is not Status.OK:
                raise SystemExit(f"{method}@{bits}: {row.reason}")
            name = row.workload.get("lora", {}).get("name", "none")
            facts = (name, method, bits, value(row, LPIPS), value(row, SQNR))
            print(f"| {' | '.join(facts)} |", flush=True)


def main() -> None:
    """Parse the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--drawings", type=int, default=128)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=100, help="of q_diffusion, a block")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lora = given.folder / "style-lora"
    if given.table:
        table(given.folder, lora, given)
    else:
        train(lora, given)


if __name__ == "__main__":
    main()
