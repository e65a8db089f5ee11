"""Three tiny networks with random weights and recorded sampler calls, for tests of methods."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.core.trace.network import Graph, trace
from quantarena.methods.info import Effort

CALLS, ROWS = 4, 8
"""Number of sampler calls and of images in each network's trajectory."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A tiny network with its trajectory.

    Attributes:
        name: name of the network, such as ``pixel-unet``.
        model: the network in full precision.
        graph: trace of the network.
        trajectory: recorded calls that methods calibrate on.
        heldout: points of other images, on which errors are measured.
    """

    name: str
    model: nn.Module
    graph: Graph
    trajectory: Trajectory
    heldout: CalibrationSet

    def context(self, bits: Bits, variant: str, effort: Effort, seed: int = 0) -> MethodContext:
        """The context that a method is given."""
        return MethodContext(
            self.model, self.graph, self.trajectory, bits, UNIFORM, variant, seed, effort
        )


def pixel_unet() -> nn.Module:
    """Unconditional U-Net with self-attention and skip concatenations, 8x8 pixels."""
    from diffusers import UNet2DModel

    network: nn.Module = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return network


def conditional_unet() -> nn.Module:
    """U-Net with cross-attention to 5 vectors of width 16, 8x8 latents."""
    from diffusers import UNet2DConditionModel

    network: nn.Module = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return network


def transformer(layers: int = 2, patch: int = 2) -> nn.Module:
    """Class-conditional diffusion transformer, 8x8 latents.

    Args:
        layers: number of its blocks.
        patch: side of a token's patch; with 4 the network is mostly its blocks.
    """
    from diffusers import DiTTransformer2DModel

    network: nn.Module = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=8,
        patch_size=patch,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )
    return network


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def sampled(model: nn.Module, sample: Tensor, conditions: Mapping[str, Tensor]) -> Trajectory:
    """Run DDIM over ``model`` from ``sample`` and record the inputs of each call."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    with recording(model, scheduler) as done:
        scheduler.set_timesteps(CALLS)
        for timestep in scheduler.timesteps:
            points = CalibrationSet(sample, timestep.expand(len(sample)), timestep, conditions)
            sample = scheduler.step(points.call(model), timestep, sample).prev_sample
    return done()


def probe(name: str, build: Callable[[], nn.Module]) -> Probe:
    """Build a network with weights that depend on nothing but this code, and sample from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval().requires_grad_(False)
    first, other = (_trajectory(model, seed) for seed in (1, 2))
    start = first.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    graph = trace(model, start.sample, timestep=start.timestep, **start.conditions)
    calls = torch.arange(CALLS).repeat_interleave(2)
    return Probe(name, model, graph, first, other.pick(calls, torch.arange(len(calls)) % ROWS))


def _trajectory(model: nn.Module, seed: int) -> Trajectory:
    config: Any = model.config
    make = _generator(seed)
    conditions: dict[str, Tensor] = {}
    if getattr(config, "cross_attention_dim", None) and "encoder_hid_dim" in config:
        conditions["encoder_hidden_states"] = torch.randn(ROWS, 5, 16, generator=make)
    elif "num_embeds_ada_norm" in config:
        conditions["class_labels"] = torch.randint(10, (ROWS,), generator=make)
    shape = (ROWS, config.in_channels, config.sample_size, config.sample_size)
    return sampled(model, torch.randn(shape, generator=make), conditions)


def probes() -> Iterator[Probe]:
    """The three networks."""
    yield probe("pixel-unet", pixel_unet)
    yield probe("conditional-unet", conditional_unet)
    yield probe("transformer", transformer)
