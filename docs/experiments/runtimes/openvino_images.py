r"""Draws images by a packed network and by its OpenVINO export, and says how far apart they are.

    python docs/experiments/sd_size.py write two-levels --widths 320 640 --latents 32 \
        --dtype float32
    python docs/experiments/sd_size.py quantize two-levels --method q_diffusion --bits w8a8 \
        -o packed
    python docs/experiments/runtimes/openvino_images.py packed --images 4 --steps 10

docs/runtimes.md has the numbers. Beside the export are two changes of our own network that change
nothing but rounding: its norms by torch's own code instead of the native pass that runs them with
the activation behind them, and their outputs moved by one last place at random. They say what any
other order of sums does to images. Full precision and images of other noise show the scale.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.bench import machine
from quantarena.bench.devices.runtimes import FILE_RUNTIMES
from quantarena.bench.metrics.fidelity.lpips import lpips
from quantarena.bench.ship.pipeline_folder import open_exported, workload_of
from quantarena.bench.spec import Budget
from quantarena.bench.stages.networks import EXAMPLE_ROWS
from quantarena.bench.stages.record import record, recorded_in
from quantarena.bench.stages.sequence import sampler_batch
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.pipeline import load
from quantarena.bench.workloads.sampling import draw_images
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.rivals.stand_in import StandIn

NORMS = (nn.GroupNorm, nn.LayerNorm)
EXPORT, NOISE, TORCH, MOVED = (
    "the export",
    "ours, other noise",
    "ours, norms by torch",
    "ours, norms moved",
)
CONTROLS = [EXPORT, NOISE, TORCH, MOVED]


@contextmanager
def norms_changed(network: nn.Module, *, shaken: bool, seed: int = 0) -> Iterator[None]:
    """Norms by torch's own code, inside the block; outputs moved by one last place if shaken.

    A hook alone keeps a norm and its activation from running as one native pass.
    """
    random = torch.Generator().manual_seed(seed)

    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        if not shaken or not isinstance(output, Tensor):
            return None
        up = torch.randint(2, output.shape, generator=random) * 2 - 1
        return torch.nextafter(output, output + up.to(output))

    hooks = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, NORMS)]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that quantize wrote")
    parser.add_argument("--full", type=Path, help="the folder that it was made from")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CONTROLS, default=CONTROLS)
    parser.add_argument(
        "--as-if-dot-products",
        action="store_true",
        help="write what processors with dot-product instructions get",
    )
    given = parser.parse_args()
    if given.as_if_dot_products:
        machine.has_dot_products = lambda: True
    torch.set_num_threads(1)
    runtime = FILE_RUNTIMES["openvino"]
    exported = open_exported(given.folder)
    exported.loaded.pipe.set_progress_bar_config(disable=True)
    count = given.images
    budget = Budget(images=count, batch=count, calibration_images=1, steps=given.steps)
    info = workload_of(exported, given.folder)
    workspace = Workspace(info, exported.loaded, given.seed, budget)
    packed = exported.packed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record(workspace, workspace.draw(calibration=True), folder, lambda *_: None)
        recorded = recorded_in(folder)
        points = sampler_batch(recorded, 1)
        few = sampler_batch(recorded, EXAMPLE_ROWS)
        stand_in: nn.Module = packed.module
        if EXPORT in given.only:
            runtime.write(packed, few, folder)
            stand_in = StandIn(packed.module, runtime.network(folder))

    def images(module: nn.Module, *, noise: int = 0) -> Tensor:
        draw = replace(workspace.draw(), seed=given.seed + noise)
        workspace.loaded.put(module)
        with announcing(workspace.loaded.pipe.scheduler, packed.clock):
            return draw_images(workspace.loaded, workspace.info, draw).images

    @torch.no_grad()
    def call(module: nn.Module) -> Tensor:
        with packed.clock.at(int(points.step[0])):
            found: Tensor = points.call(module)
            return found

    wanted, first = images(packed.module), call(packed.module)

    def tell(name: str, drawn: Tensor, one: Tensor | None) -> None:
        apart = lpips(wanted, drawn)
        said = "-" if one is None else f"{float((one - first).norm() / first.norm()):.1e}"
        levels = (drawn.float() - wanted.float()).abs().mean()
        print(
            f"| {name} | {said} | {apart.mean():.5f} | {apart.max():.5f} | {levels:.3f} |",
            flush=True,
        )

    print(f"{count} images, {given.steps} steps, seed {given.seed}")
    print("| against our kernels | one call | mean LPIPS | largest | levels of 255 |")
    print("|---|---|---|---|---|", flush=True)
    if EXPORT in given.only:
        tell(EXPORT, images(stand_in), call(stand_in))
    if NOISE in given.only:
        tell(NOISE, images(packed.module, noise=1), None)
    if given.full:
        full = load(registry.resolve(str(given.full.resolve()))).denoiser
        tell("full precision", images(full), call(full))
    # last: a hook keeps a norm and its activation from running as one pass from then on
    for name, shaken in ((TORCH, False), (MOVED, True)):
        if name not in given.only:
            continue
        with norms_changed(packed.module, shaken=shaken):
            tell(name, images(packed.module), call(packed.module))


if __name__ == "__main__":
    main()
