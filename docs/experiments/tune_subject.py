"""Tunes a quantized model to a new subject: TuneQDM and PEQA against full-precision fine-tuning.

The subject is one class of emoji-dit in a style that the model has never seen: channels are
rotated and colours inverted, so the background is dark. Every network is tuned on the same images,
noise and timesteps. Fidelity is the distance of its images to those of the full-precision
fine-tune, from the same noise; "loss" is the noise error on images of the subject that nobody was
tuned on. State adds up what tuning has to hold beside activations: packed weights, gradients and
two moments of what learns. The tuning pass here also holds float weights.

    python docs/experiments/tune_subject.py

The script takes about two core-minutes.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.bench.metrics.fidelity.fidelity import fidelity
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.workspace import Workspace, open_workspace
from quantarena.bench.training.tasks.dit import class_names
from quantarena.bench.training.tasks.noise import NoiseObjective
from quantarena.bench.training.tasks.vae import encode
from quantarena.bench.workloads import emoji64
from quantarena.bench.workloads.sampling import draw_images
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.model.model import QuantizedModel, wrap
from quantarena.methods.core.model.options.call_gains import CallGains, pair_of
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.record.announce import announcing, schedule_of
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.learn.learning import start_learning
from quantarena.methods.techniques.learn.param_groups import Decay, Group, Learnable, Optimiser
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.tuneqdm import TuneQdm, trainable

TRAINED = 1000
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """The latents (N, C, H, W) for tuning and for judging, and their class."""

    train: Tensor
    held: Tensor
    label: int


def styled(pixels: Tensor) -> Tensor:
    """Rotates channels and inverts colours: uint8 (N, H, W, 3) to (N, 3, H, W) in [-1, 1]."""
    turned = 255 - pixels[..., [2, 0, 1]].int()
    return turned.permute(0, 3, 1, 2).float() / 127.5 - 1


def subject(workspace: Workspace, name: str, count: int) -> Subject:
    """Encodes the drawings of a class in the new style: ``count`` for tuning, the rest held out."""
    rows = [row for row in emoji64.records() if row.subcategory == name]
    vae = workspace.loaded.pipe.vae
    pixels = torch.from_numpy(emoji64.load_images(rows, int(vae.config.sample_size)))
    latents = encode(vae, styled(pixels)[torch.randperm(len(rows))])
    return Subject(latents[:count], latents[count:], class_names().index(name))


def loss_of(predict: Callable[[CalibrationSet], Tensor], label: int, workspace: Workspace) -> Loss:
    """Returns the function that computes the noise error of a batch of clean latents."""
    objective = NoiseObjective(workspace.loaded.pipe.scheduler)

    def loss(clean: Tensor) -> Tensor:
        labels = torch.full((len(clean),), label)

        def noise(noisy: Tensor, steps: Tensor) -> Tensor:
            return predict(CalibrationSet(noisy, steps, steps, {"class_labels": labels}))

        return objective(clean, noise)

    return loss


def tune(loss: Loss, optimiser: Optimiser, clean: Tensor, updates: int, batch: int) -> None:
    """Tunes on the same batches, noise and timesteps for every network."""
    for update in range(updates):
        torch.manual_seed(update)
        optimiser.zero_grad()
        loss(clean[torch.randint(len(clean), (batch,))]).backward()  # type: ignore[no-untyped-call]
        optimiser.step(update / updates)


@torch.no_grad()
def judged(loss: Loss, held: Tensor) -> float:
    """Measures the noise error on held-out drawings, with the same noise for every network."""
    torch.manual_seed(10**6)
    return sum(float(loss(held)) for _ in range(8)) / 8


def quantized(workspace: Workspace, bits: str, label: int, experts: int) -> QuantizedModel:
    """Rounds to nearest, freezes the codes, and adds gains by timestep."""
    network = workspace.loaded.denoiser
    sample = torch.randn(2, 4, int(network.config.sample_size), int(network.config.sample_size))
    labels = torch.full((2,), label)
    graph = trace(network, sample, timestep=torch.ones(2).long(), class_labels=labels)
    model = wrap(network, graph, TuneQdm.published.assign(graph, parse_bits(bits)))
    model.set_weight_ranges(minmax_range)
    of_time = pair_of(torch.arange(TRAINED), experts, TRAINED)
    for layer in model.layers.values():
        layer.freeze()
        layer.set_gains(of_time, experts)  # while tuning, every timestep is a call
    return model


def deploy(model: QuantizedModel, workspace: Workspace, experts: int) -> None:
    """Replaces the table by timestep with one by the sampler's calls."""
    scheduler = workspace.loaded.pipe.scheduler
    scheduler.set_timesteps(workspace.steps)
    schedule = model.clock.schedule = schedule_of(scheduler)
    of_call = pair_of(torch.tensor(schedule.timesteps), experts, TRAINED)
    for layer in model.layers.values():
        gains = layer.option(CallGains)
        assert gains is not None
        gains.of_call = of_call


def drawn(workspace: Workspace, network: nn.Module, clock: Any = None) -> Tensor:
    """Draws the evaluation images of the subject's class."""
    loaded, before = workspace.loaded, workspace.loaded.denoiser
    loaded.put(network)
    try:
        if clock is None:
            return draw_images(loaded, workspace.info, workspace.draw()).images
        with announcing(loaded.pipe.scheduler, clock):
            return draw_images(loaded, workspace.info, workspace.draw()).images
    finally:
        loaded.put(before)


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subject", default="food-fruit", help="subcategory of emoji64")
    parser.add_argument("--count", type=int, default=16, help="number of drawings for tuning")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of full precision")
    parser.add_argument("--gain-lr", type=float, default=5e-3, help="learning rate of gains")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    budget = Budget(images=given.images, batch=given.images)
    opened = open_workspace(Cell("emoji-dit", "fp", "fp", given.seed, budget=budget))
    chosen = subject(opened, given.subject, given.count)
    workspace = replace(opened, info=replace(opened.info, prompts=(str(chosen.label),)))
    original = workspace.loaded.denoiser
    floats = sum(p.numel() for p in original.parameters())
    tuned = copy.deepcopy(original).requires_grad_(True)
    group = Group(given.lr, Decay.LINEAR)
    loss = loss_of(lambda p: p.call(tuned), chosen.label, workspace)
    print(
        f"{'network':24} {'loss':>7}  {'trainable':>9}  {'state':>9}  {'adapter':>9}  to FP tuned"
    )

    def line(name: str, loss: float, learn: int, weights: int, images: Tensor | None) -> None:
        gaps = (
            ""
            if images is None
            else "  ".join(
                f"{key} {values.mean():.4f}" for key, values in fidelity(reference, images).items()
            )
        )
        print(
            f"{name:24} {loss:7.4f}  {learn:9,}  "
            f"{(weights + 12 * learn) / 2**20:5.1f} MiB  {4 * learn / 2**20:5.2f} MiB  {gaps}",
            flush=True,
        )

    before = loss_of(lambda p: p.call(original), chosen.label, workspace)
    start = time.process_time()
    tune(
        loss,
        Optimiser({"weight": [Learnable(p) for p in tuned.parameters()]}, {"weight": group}),
        chosen.train,
        given.updates,
        given.batch,
    )
    seconds = time.process_time() - start
    tuned.requires_grad_(False)
    reference = drawn(workspace, tuned)
    line("fp, not tuned", judged(before, chosen.held), 0, 4 * floats, drawn(workspace, original))
    line(f"fp, tuned ({seconds:.0f} s)", judged(loss, chosen.held), floats, 4 * floats, None)
    for bits in ("w8a16", "w4a16"):
        for name, experts, inputs in (
            ("not tuned", 1, False),
            ("peqa", 1, False),
            ("one expert", 1, True),
            ("tuneqdm", given.experts, True),
        ):
            torch.manual_seed(given.seed)
            model = quantized(workspace, bits, chosen.label, experts)
            names = ("gain_out", "gain_in") if inputs else ("gain_out",)

            def predict(points: CalibrationSet, model: QuantizedModel = model) -> Tensor:
                found: Tensor = model.run(points)
                return found

            ours = loss_of(predict, chosen.label, workspace)
            learn = 0
            if name != "not tuned":
                rates = dict.fromkeys(names, Group(given.gain_lr, Decay.LINEAR, relative=True))
                learning = start_learning(model.layers, [], names)
                optimiser = Optimiser(learning.parameters, rates)
                tune(ours, optimiser, chosen.train, given.updates, given.batch)
                learning.finish()
                learn = trainable(model, inputs=inputs)
            gap = judged(ours, chosen.held)
            deploy(model, workspace, experts)
            packed = pack(model)
            line(
                f"{bits} {name}",
                gap,
                learn,
                packed.bytes(),
                drawn(workspace, packed.module, packed.clock),
            )


if __name__ == "__main__":
    main()
