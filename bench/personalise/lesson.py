"""What a network learns from: clean latents with their conditions, and the loss on them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.bench.errors import UserError
from quantarena.bench.personalise.subject import Subject
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Draw, draw_images
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.tuning import TunedNetwork

_ENCODE = 16
"""Images that the autoencoder takes at a time."""


class _Enough(Exception):
    """The pipeline has called its network; no error, it ends a run of which one call is needed."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One clean image as the network sees it.

    Attributes:
        clean: latents, or pixels in [-1, 1] where there is no autoencoder; (1, C, H, W).
        inputs: what else the network is given, one row.
    """

    clean: Tensor
    inputs: CalibrationSet


def examples(
    loaded: LoadedPipeline, info: WorkloadInfo, subjects: Sequence[Subject]
) -> list[Example]:
    """All images of all subjects.

    Raises:
        UserError: the workload does not draw from prompts.
    """
    if info.conditions != "prompt":
        raise UserError(
            f"{info.noise_name} does not draw from prompts: a subject is named by a word in one"
        )
    found = []
    for subject in subjects:
        inputs = prompt_inputs(loaded, info, subject.prompt)
        found += [
            Example(row, inputs) for row in torch.split(encoded(loaded.pipe, subject.images), 1)
        ]
    return found


@torch.no_grad()
def prompt_inputs(loaded: LoadedPipeline, info: WorkloadInfo, prompt: str) -> CalibrationSet:
    """What a pipeline gives its network for a prompt, one row; the network itself is not run."""
    asked = replace(info, prompts=(prompt,), guidance=1.0)
    network = loaded.denoiser

    def stop(*_: Any) -> None:
        raise _Enough

    with recording(network) as recorder:
        handle = network.register_forward_pre_hook(stop)
        try:
            draw_images(loaded, asked, Draw("evaluate", 1, 0, info.steps, 1))
        except _Enough:
            pass
        finally:
            handle.remove()
    recorded = recorder()
    # where guidance cannot be turned off, the half with the prompt comes last
    return recorded.pick(torch.zeros(1).long(), torch.tensor([recorded.rows - 1]))


@torch.no_grad()
def encoded(pipe: Any, images: Tensor) -> Tensor:
    """Latents of uint8 images, as the pipeline's decoder expects them."""
    pixels = images.float() / 127.5 - 1
    vae = pipe.components.get("vae")
    if vae is None:
        return pixels
    parts = [vae.encode(part).latent_dist.mode() for part in torch.split(pixels, _ENCODE)]
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: Tensor = (torch.cat(parts) - shift) * float(vae.config.scaling_factor)
    return latents


class NoiseLoss:
    """The squared error of the predicted noise, as the papers train with; batches of one image.

    The images, timesteps and noise of a batch depend on the seed and on the number of the batch
    alone, so that every approach sees the same. The timesteps of the batches of one update are
    spread evenly.
    """

    def __init__(
        self, scheduler: Any, lessons: Sequence[Example], accumulate: int, seed: int
    ) -> None:
        """Takes the examples.

        Args:
            scheduler: the sampler, whose noise levels the network was trained with.
            lessons: images to learn from.
            accumulate: batches of one update.
            seed: seed of everything random.

        Raises:
            UserError: the sampler is none of a noise predictor.
        """
        alphas = getattr(scheduler, "alphas_cumprod", None)
        self.target = getattr(scheduler.config, "prediction_type", "epsilon")
        if alphas is None or self.target not in ("epsilon", "v_prediction", "sample"):
            raise UserError(
                f"{type(scheduler).__name__} does not say the noise levels of a noise predictor: "
                "models of flow matching cannot be tuned"
            )
        self.alphas: Tensor = alphas.float().cpu()
        self.lessons, self.accumulate, self.seed = list(lessons), accumulate, seed

    @property
    def horizon(self) -> int:
        """Timesteps that the network was trained with."""
        return len(self.alphas)

    def of(self, network: TunedNetwork, update: int, number: int) -> Tensor:
        """The loss of one batch."""
        generator = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + update) * self.accumulate + number
        )
        picked = int(torch.randint(len(self.lessons), (1,), generator=generator))
        place = (number + float(torch.rand(1, generator=generator))) / self.accumulate
        step = torch.tensor([min(int(place * self.horizon), self.horizon - 1)])
        return self._error(network, self.lessons[picked], step, generator)

    @torch.no_grad()
    def mean(self, network: TunedNetwork, count: int) -> float:
        """The mean loss of every example at ``count`` timesteps spread evenly, the same noise."""
        total = 0.0
        for number, lesson in enumerate(self.lessons):
            for place in range(count):
                generator = torch.Generator().manual_seed(self.seed + number * count + place)
                step = torch.tensor([int((place + 0.5) / count * self.horizon)])
                total += float(self._error(network, lesson, step, generator))
        return total / (len(self.lessons) * count)

    def _error(
        self, network: TunedNetwork, lesson: Example, step: Tensor, generator: torch.Generator
    ) -> Tensor:
        clean, alpha = lesson.clean, self.alphas[step].view(-1, *[1] * (lesson.clean.dim() - 1))
        noise = torch.randn(clean.shape, generator=generator)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        noisy = signal * clean + spread * noise
        wanted = {"epsilon": noise, "sample": clean}.get(
            self.target, signal * noise - spread * clean
        )
        network.tell(step)
        there = next(chain(network.module.parameters(), network.module.buffers())).device
        given = replace(lesson.inputs, sample=noisy, timestep=step).on(there)
        found, wanted = _call(network.module, given), wanted.to(there)
        # some networks predict a variance beside the noise, which this loss leaves alone
        return F.mse_loss(found[:, : clean.shape[1]], wanted)


def _call(module: nn.Module, points: CalibrationSet) -> Tensor:
    result: Tensor = points.call(module)
    return result
