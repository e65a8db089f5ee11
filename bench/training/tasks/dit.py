"""`emoji-dit`: a class-conditional diffusion transformer on the same latents."""

from __future__ import annotations

from typing import cast

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor, nn

from quantarena.bench.training.tasks.images import images_tensor
from quantarena.bench.training.tasks.noise import NoiseObjective, augmented, scheduler
from quantarena.bench.training.tasks.vae import LATENT_CHANNELS, LATENT_SIDE, encode
from quantarena.bench.workloads import emoji64

__all__ = ["DitTask", "class_names"]

# DiTPipeline writes the class "none" as 1000, so the table has 1000 classes and that one.
TABLE = 1000


def class_names() -> list[str]:
    """Returns the emoji subcategories in alphabetic order; the index is the class id."""
    return sorted({row.subcategory for row in emoji64.records()})


class DitTask:
    """Trains the transformer on the cached latents of the train split.

    Args:
        vae: The trained autoencoder.
        device: torch device.
        copies: Jittered versions of every image beside the original.
    """

    name = "emoji-dit"

    def __init__(self, vae: AutoencoderKL, device: str = "cpu", copies: int = 2) -> None:
        names = class_names()
        rows = emoji64.records("train")
        self.labels = torch.tensor([names.index(row.subcategory) for row in rows], device=device)
        images = images_tensor("train", int(vae.config.sample_size), device)
        self.latents = augmented(images, lambda x: encode(vae, x), copies)
        self.objective = NoiseObjective(scheduler(latent=True), device)

    def build(self) -> nn.Module:
        """Builds the transformer: 6 adaLN-zero blocks of width 192 over 16 patches."""
        net = DiTTransformer2DModel(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=6,
            norm_num_groups=32,
            sample_size=LATENT_SIDE,
            patch_size=2,
            num_embeds_ada_norm=TABLE,
        )
        for block in net.transformer_blocks:  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(block.norm1.linear.weight)
            nn.init.zeros_(block.norm1.linear.bias)
            nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
        nn.init.zeros_(net.proj_out_2.weight)
        nn.init.zeros_(net.proj_out_2.bias)
        return cast("nn.Module", net)

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Returns the noise-prediction loss; the network itself drops a tenth of the classes."""
        device = self.latents.device
        copies = torch.randint(len(self.latents), (batch,), device=device)
        picks = torch.randint(len(self.labels), (batch,), device=device)
        labels = self.labels[picks]
        clean = self.latents[copies, picks]
        return self.objective(
            clean, lambda noisy, steps: net(noisy, timestep=steps, class_labels=labels).sample
        )
