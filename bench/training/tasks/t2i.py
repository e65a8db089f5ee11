"""`emoji-t2i`: a small text-to-image model in the Stable Diffusion layout."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from quantarena.bench.training.tasks.images import images_tensor
from quantarena.bench.training.tasks.noise import NoiseObjective, augmented, scheduler
from quantarena.bench.training.tasks.vae import LATENT_CHANNELS, LATENT_SIDE, encode
from quantarena.bench.workloads import emoji64

__all__ = ["MAX_TOKENS", "TextToImage", "TextToImageTask", "build_tokenizer", "run_tokenizer"]

MAX_TOKENS = 16
TEXT_WIDTH = 128
CAPTION_DROPOUT = 0.1


def build_tokenizer(captions: list[str], vocab: int = 2048) -> CLIPTokenizer:
    """Trains a byte-pair tokenizer of the CLIP kind (start and end tokens) on the captions."""
    tokenizer = CLIPTokenizer().train_new_from_iterator(captions, vocab_size=vocab)
    tokenizer.model_max_length = MAX_TOKENS
    return cast("CLIPTokenizer", tokenizer)


def run_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    """Returns the tokenizer of a training run, which is trained and saved at the run's start.

    The trainer breaks ties by hash order: another process gives some tokens other ids, so a run
    must keep the tokenizer that its weights were trained with.
    """
    if not (folder / "tokenizer.json").is_file():
        build_tokenizer(captions).save_pretrained(folder)
    return cast("CLIPTokenizer", CLIPTokenizer.from_pretrained(folder, local_files_only=True))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Returns padded token ids, shape (N, MAX_TOKENS)."""
    ids = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    return cast("Tensor", ids)


class TextToImage(nn.Module):
    """A text encoder and a U-Net, which are trained together.

    Args:
        vocab: Number of tokens.
        start: Id of the start token.
        end: Id of the end and padding token.
    """

    def __init__(self, vocab: int, start: int, end: int) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab,
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                projection_dim=TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,  # diffusers reads this as the number of heads
            norm_num_groups=32,
        )

    def forward(self, noisy: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        """Returns the predicted noise."""
        states = self.text(input_ids=ids).last_hidden_state
        return cast("Tensor", self.unet(noisy, steps, encoder_hidden_states=states).sample)


class TextToImageTask:
    """Trains text encoder and U-Net on the cached latents of the train split.

    Args:
        vae: The trained autoencoder.
        device: torch device.
        copies: Jittered versions of every image beside the original.
        tokenizer: Folder of the run's tokenizer; made if it is not there.
    """

    name = "emoji-t2i"

    def __init__(
        self, vae: AutoencoderKL, tokenizer: Path, device: str = "cpu", copies: int = 2
    ) -> None:
        rows = emoji64.records("train")
        captions = [row.caption for row in rows]
        self.tokenizer = run_tokenizer(tokenizer, captions)
        self.ids = tokenize(self.tokenizer, captions).to(device)
        self.empty = tokenize(self.tokenizer, [""]).to(device)
        images = images_tensor("train", int(vae.config.sample_size), device)
        self.latents = augmented(images, lambda x: encode(vae, x), copies)
        self.objective = NoiseObjective(scheduler(latent=True), device)

    def build(self) -> nn.Module:
        """Builds text encoder and U-Net."""
        tokenizer = self.tokenizer
        return TextToImage(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)

    def loss(self, net: nn.Module, batch: int) -> Tensor:
        """Returns the noise-prediction loss; a tenth of the captions is left out."""
        device = self.latents.device
        copies = torch.randint(len(self.latents), (batch,), device=device)
        picks = torch.randint(len(self.ids), (batch,), device=device)
        dropped = torch.rand(batch, device=device) < CAPTION_DROPOUT
        ids = torch.where(dropped[:, None], self.empty, self.ids[picks])
        clean = self.latents[copies, picks]
        return self.objective(clean, lambda noisy, steps: net(noisy, steps, ids))
