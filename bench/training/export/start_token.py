"""The share of cross-attention that a text-to-image model spends on the start token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Recorder:
    """An attention processor that also notes how much weight the first key token gets."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        weights = attn.get_attention_scores(query, key)
        self.shares.append(float(weights[..., 0].mean()))
        output = attn.batch_to_head_dim(torch.bmm(weights, value))
        output = attn.to_out[1](attn.to_out[0](output))
        return output / attn.rescale_output_factor  # type: ignore[no-any-return]


@contextmanager
def _recording(unet: Any) -> Iterator[dict[str, _Recorder]]:
    before = dict(unet.attn_processors)
    recorders = {name: _Recorder() for name in before if ".attn2." in name}
    unet.set_attn_processor({**before, **recorders})
    try:
        yield recorders
    finally:
        unet.set_attn_processor(before)


def start_token_share(pipeline: Any, prompts: list[str], steps: int) -> dict[str, float]:
    """Returns the mean cross-attention weight on the start token, by layer, over a sampling."""
    generator = torch.Generator().manual_seed(0)
    with _recording(pipeline.unet) as recorders:
        pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=generator,
            output_type="latent",
        )
        return {
            name.removesuffix(".processor"): float(np.mean(recorder.shares))
            for name, recorder in recorders.items()
        }
