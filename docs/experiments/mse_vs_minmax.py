"""Compares the MSE range search with min-max: the numbers of docs/protocol.md, "Range searches".

The script runs round-to-nearest on the zoo's models. It varies the searches for weights and
activations, the exponent, the kinds of layers, grids and widths, and compares each setting with
full precision from the same noise.

    python docs/experiments/mse_vs_minmax.py [--workload emoji-t2i] [--images 16] [--part norms]

Image PSNR is the mean over images. Latent SNR is that of the last latents. Noise SNR is that of
one network call on full precision's own inputs, and gain is how far that call reproduces the
amplitude: <quantized, full precision> / <full precision, full precision>; both are means over
sampler steps. SNRs are in decibels.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.bench.cache import StageCache
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import Workspace, open_workspace
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.sampling import draw_images
from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import QuantizedModel, wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.core.trace.network import Graph, Role, trace
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.named import default_range

GROUPS: dict[str, tuple[Role, ...]] = {
    "time embedding": (Role.TIME_EMBED, Role.EMB_PROJ),
    "input and output": (Role.INPUT, Role.OUTPUT),
    "queries, keys, values": (Role.QKV,),
}
OTHERS = "all others"
W4A8 = Bits(4, 8)
ROWS = 8  # inputs a step for the noise SNR


@dataclass(frozen=True, slots=True)
class Study:
    """A workload, its full-precision results, and calibration points."""

    workspace: Workspace
    graph: Graph
    original: nn.Module
    calibration: CalibrationSet
    images: Tensor
    latents: Tensor
    inputs: CalibrationSet
    noise: Tensor


@dataclass(frozen=True, slots=True)
class Setting:
    """The ranges of one line of a table.

    Attributes:
        weights: search for weights.
        acts: search for layer inputs.
        groups: kinds of layers that are searched so, others get min-max; empty for all.
        uniform: whether input, output and time embedding keep 8 bits.
        symmetric_weights: grid of weights.
        symmetric_acts: grid of layer inputs.
        regain: divide what the network returns by its gain on the calibration points.
        bits: requested.
    """

    weights: RangeSearch = minmax_range
    acts: RangeSearch = minmax_range
    groups: tuple[str, ...] = ()
    uniform: bool = True
    symmetric_weights: bool = False
    symmetric_acts: bool = False
    regain: bool = False
    bits: Bits = W4A8


@contextmanager
def last_latents(pipe: Any) -> Iterator[list[Tensor]]:
    """Collects the latents that the decoder is given inside the ``with`` block."""
    kept: list[Tensor] = []
    decode = pipe.vae.decode

    def note(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        kept.append(latents.clone())
        return decode(latents, *args, **kwargs)

    pipe.vae.decode = note
    try:
        yield kept
    finally:
        pipe.vae.decode = decode


def sample(workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Draws images (N, 3, H, W) and last latents (N, C, h, w) with the pipeline's network."""
    with last_latents(workspace.loaded.pipe) as latents:
        drawn = draw_images(workspace.loaded, workspace.info, workspace.draw())
    return drawn.images, torch.cat(latents)


def prepare(workload: str, images: int, points: int) -> Study:
    """Samples and records at full precision."""
    budget = Budget(images=images, batch=16, calibration_images=8, calibration_samples=points)
    workspace = open_workspace(Cell(workload, "fp", "fp", budget=budget))
    original = workspace.loaded.denoiser
    with tempfile.TemporaryDirectory() as folder:
        recorded = trajectory(workspace, StageCache(Path(folder)))
    with recording(original) as done:
        reference, latents = sample(workspace)
    run = done()
    steps = torch.arange(run.calls).repeat_interleave(ROWS)
    rows = torch.linspace(0, run.rows - 1, ROWS).round().long().repeat(run.calls)
    inputs = run.pick(steps, rows)
    with torch.no_grad():
        noise = torch.cat([batch.call(original) for batch in inputs.batches(64)])
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    graph = trace(original, first.sample, timestep=first.timestep, **first.conditions)
    calibration = UniformStride(points).draw(recorded, 0)
    return Study(workspace, graph, original, calibration, reference, latents, inputs, noise)


def group_of(role: Role) -> str:
    """Names the line of the table to which a layer belongs."""
    return next((name for name, roles in GROUPS.items() if role in roles), OTHERS)


def act_params(model: QuantizedModel) -> dict[tuple[str, int], QuantParams]:
    """Returns the present activation ranges by layer and part."""
    found = {}
    for name, layer in model.layers.items():
        for index, part in enumerate(layer.parts):
            if part.act_quantizer is not None:
                quantizer = part.act_quantizer
                found[name, index] = QuantParams(
                    quantizer.scale.detach().clone(), quantizer.zero_point.clone(), quantizer.bits
                )
    return found


def quantize(study: Study, setting: Setting) -> QuantizedModel:
    """Rounds to nearest with the setting's ranges."""
    assignment = UNIFORM.assign(study.graph, setting.bits)
    if not setting.uniform:
        assignment = dict.fromkeys(study.graph.layers, setting.bits)
    model = wrap(study.original, study.graph, assignment)

    def chosen(name: str) -> bool:
        return not setting.groups or group_of(study.graph.layers[name].role) in setting.groups

    for name, layer in model.layers.items():
        search = setting.weights if chosen(name) else minmax_range
        layer.set_weight_ranges(search, symmetric=setting.symmetric_weights)
    plan = CalibrationPlan(symmetric=setting.symmetric_acts, quantized_weights=False)
    calibrate = partial(calibrate_activations, model, study.calibration, plan=plan)
    if setting.groups:
        calibrate(setting.acts)
        found = act_params(model)
        calibrate(minmax_range)
        for (name, index), params in found.items():
            if chosen(name):
                quantizer = model.layers[name].parts[index].act_quantizer
                assert quantizer is not None
                quantizer.set_params(params)
    else:
        calibrate(setting.acts)
    model.freeze()
    return model


def decibels(signal: Tensor, error: Tensor) -> float:
    """Computes the signal-to-noise ratio of energies in dB, as the mean over entries."""
    return float((10 * torch.log10(signal.double() / error.double().clamp(min=1e-20))).mean())


def gains(got: Tensor, wanted: Tensor) -> Tensor:
    """Computes for each row (R, N) the share of the amplitude of ``wanted`` that ``got`` has."""
    return (got * wanted).sum(1) / wanted.square().sum(1)


@torch.no_grad()
def restore_gain(study: Study, module: nn.Module) -> None:
    """Divides the output of ``module`` by its gain on the calibration points, from now on."""
    pairs = [
        (batch.call(module), batch.call(study.original)) for batch in study.calibration.batches(64)
    ]
    got, wanted = (torch.cat([pair[index].flatten() for pair in pairs]) for index in (0, 1))
    gain = gains(got[None], wanted[None]).item()

    def divide(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] / gain, *output[1:])
        output.sample = output.sample / gain
        return output

    module.register_forward_hook(divide)


@torch.no_grad()
def measure(study: Study, setting: Setting) -> tuple[float, float, float, float]:
    """Measures image PSNR, latent SNR, noise SNR and gain of one setting."""
    model = quantize(study, setting)
    if setting.regain:
        restore_gain(study, model.module)
    study.workspace.loaded.put(model.module)
    try:
        images, latents = sample(study.workspace)
    finally:
        study.workspace.loaded.put(study.original)
    noise = torch.cat([batch.call(model.module) for batch in study.inputs.batches(64)])
    steps = int(study.inputs.step.max()) + 1
    noise, wanted = (x.double().reshape(steps, -1) for x in (noise, study.noise))
    pixels = (images.double() - study.images.double()).square().flatten(1).mean(1)
    gap = (latents - study.latents).square().sum()
    return (
        decibels(torch.tensor(255.0**2), pixels),
        decibels(study.latents.square().sum(), gap),
        decibels(wanted.square().sum(1), (noise - wanted).square().sum(1)),
        float(gains(noise, wanted).mean()),
    )


def mse(norm: float) -> RangeSearch:
    """Returns the MSE search with the exponent ``norm``."""
    return partial(mse_range, norm=norm)


Table = dict[str, Setting]
NORMS = (1.0, 2.0, 2.4, 4.0)


def norms() -> Table:
    """Settings that search weights or activations with several exponents.

    Those of weights come with all layers at 4 bits too.
    """
    table = {"uniform: min-max, min-max": Setting()}
    for norm in NORMS:
        table[f"uniform: mse {norm:g}, min-max"] = Setting(mse(norm))
    for norm in NORMS:
        table[f"uniform: min-max, mse {norm:g}"] = Setting(acts=mse(norm))
    table["uniform: mse 2.4, mse 2.4"] = Setting(mse(2.4), mse(2.4))
    table["all at 4 bits: min-max, min-max"] = Setting(uniform=False)
    for norm in NORMS:
        table[f"all at 4 bits: mse {norm:g}, min-max"] = Setting(mse(norm), uniform=False)
    return table


def regain() -> Table:
    """Settings that search weights by MSE with all layers at 4 bits, and restore the gain."""
    return {
        f"all at 4 bits: {name}, min-max, gain restored": Setting(
            search, uniform=False, regain=True
        )
        for name, search in (("min-max", minmax_range), ("mse 1", mse(1)), ("mse 2", mse(2)))
    }


def layers() -> Table:
    """Settings with all layers at 4 bits that search one kind of layer only."""
    table: Table = {}
    for name in (*GROUPS, OTHERS):
        for norm in (1.0, 2.4):
            only = partial(Setting, groups=(name,), uniform=False)
            table[f"weights of {name}, mse {norm:g}"] = only(mse(norm))
            table[f"inputs of {name}, mse {norm:g}"] = only(acts=mse(norm))
    return table


def grids() -> Table:
    """Settings with symmetric grids, under policy ``uniform``."""
    table: Table = {}
    for name, search in (("min-max", minmax_range), ("mse 2.4", mse(2.4))):
        table |= {
            f"symmetric weights {name}": Setting(search, symmetric_weights=True),
            f"symmetric activations {name}": Setting(acts=search, symmetric_acts=True),
        }
    return table


def widths() -> Table:
    """Settings with other bits, under policy ``uniform``."""
    table: Table = {}
    plain, found = ("min-max", minmax_range), ("mse 2.4", mse(2.4))
    for bits in (Bits(4, 4), Bits(2, 8), Bits(8, 8)):
        for (name, weights), (other, acts) in product((plain, found), (plain, found)):
            table[f"{bits}: {name}, {other}"] = Setting(weights, acts, bits=bits)
    return table


def rule() -> Table:
    """Settings with one search for weights and activations: min-max, MSE, and the default."""
    searches = {"min-max": minmax_range, "mse 2.4": mse(2.4), "default": default_range}
    return {
        f"{bits}: {name}": Setting(search, search, bits=bits)
        for bits in (Bits(8, 8), Bits(4, 8), Bits(4, 4), Bits(2, 8))
        for name, search in searches.items()
    }


PARTS: dict[str, Callable[[], Table]] = {
    "norms": norms,
    "regain": regain,
    "layers": layers,
    "grids": grids,
    "widths": widths,
    "rule": rule,
}


def main() -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", action="append", choices=registry.names())
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--points", type=int, default=128, help="calibration points")
    parser.add_argument("--part", action="append", choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for workload in options.workload or registry.names():
        study = prepare(workload, options.images, options.points)
        for part in options.part or PARTS:
            print(f"\n{workload}, {part}: {options.images} images\n")
            print("| weights, activations | image PSNR | latent SNR | noise SNR | gain |")
            print("|---|---|---|---|---|")
            for name, setting in PARTS[part]().items():
                psnr, latent, noise, gain = measure(study, setting)
                print(
                    f"| {name} | {psnr:.2f} | {latent:.2f} | {noise:.2f} | {gain:.3f} |", flush=True
                )


if __name__ == "__main__":
    main()
