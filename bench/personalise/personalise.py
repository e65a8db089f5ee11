"""Tunes the denoiser of a loaded pipeline to examples, and measures the memory that it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from quantarena.bench.devices.device import peak_of
from quantarena.bench.memory import peak_growth
from quantarena.bench.personalise.lesson import NoiseLoss
from quantarena.bench.personalise.memory import Memory, give_back, resident_bytes
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.methods.contract import seed_all
from quantarena.methods.core.bits import Bits, parse_bits
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.announce import schedule_of
from quantarena.methods.core.trace.network import trace
from quantarena.methods.core.visits import HOST
from quantarena.methods.tuning import Recipe, TunedNetwork, from_float, from_packed

Progress = Callable[[int, int], None]
"""Called with (updates done, updates in all)."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A finished tuning.

    Attributes:
        network: the network.
        losses: loss of each update.
        memory: what it took.
    """

    network: TunedNetwork
    losses: tuple[float, ...]
    memory: Memory


def float_widths(loaded: LoadedPipeline, loss: NoiseLoss, bits: str) -> dict[str, Bits]:
    """Bits of every layer of a float network, by policy ``uniform``."""
    lesson = loss.lessons[0]
    points = lesson.inputs
    two = torch.zeros(2).long()
    rows = points.rows(two)  # tracing tells rows from other axes, for which one is too few
    sample = lesson.clean.expand(2, *lesson.clean.shape[1:]).contiguous()
    with torch.no_grad():
        graph = trace(
            loaded.denoiser, sample, timestep=two + 1, return_dict=False, **rows.conditions
        )
    return UNIFORM.assign(graph, parse_bits(bits))


def personalise(
    loaded: LoadedPipeline,
    source: PackedModel | dict[str, Bits],
    loss: NoiseLoss,
    recipe: Recipe,
    seed: int,
    progress: Progress | None = None,
    device: torch.device = HOST,
) -> Tuning:
    """Tune the denoiser; the pipeline has none afterwards, until a packed one is put into it.

    Args:
        loaded: the pipeline.
        source: the packed network, or the bits at which a float one is packed.
        loss: what it learns.
        recipe: how it learns.
        seed: seed of what learns, where that starts at random.
        progress: called after each update.
        device: where the network learns; it is made, and comes back, on the host.
    """
    seed_all(seed)
    module = loaded.denoiser
    packed = source if isinstance(source, PackedModel) else None
    network = tensor_bytes(module)
    loaded.put(nn.Identity())  # nothing else may hold the float weights
    give_back()
    before = resident_bytes() - network
    made: list[TunedNetwork] = []

    def prepare() -> None:
        if packed is not None:
            made.append(from_packed(packed, recipe, loss.horizon))
        elif not isinstance(source, PackedModel):
            made.append(from_float(module, source, recipe, loss.horizon))

    preparing = network + peak_growth(prepare)
    tuned = made.pop()
    give_back()
    prepared = resident_bytes() - before
    if device.type != HOST.type:
        prepared = tensor_bytes(tuned.module.to(device))
    losses: list[float] = []

    def run() -> None:
        def batch(update: int, number: int) -> torch.Tensor:
            return loss.of(tuned, update, number)

        losses.extend(recipe.run(tuned, batch, progress=progress))

    peak = prepared + peak_of(run, device)
    tuned.module.to(HOST)
    return Tuning(tuned, tuple(losses), Memory(network, preparing, prepared, peak))


def packed_for(tuning: Tuning, loaded: LoadedPipeline, steps: int) -> PackedModel:
    """The tuned network, packed, for a sampler of so many steps."""
    scheduler = loaded.pipe.scheduler
    scheduler.set_timesteps(steps)
    return tuning.network.pack(schedule_of(scheduler))
