"""Tiny pipelines whose text encoder is a language model: Lumina, Lumina 2 and Z-Image."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TINY = runpy.run_path(str(Path(__file__).with_name("tiny_pipelines.py")))
WIDTH: int = _TINY["WIDTH"]
autoencoder = _TINY["autoencoder"]


def word_tokenizer() -> Any:
    """One token a word, as a language model's tokenizer: it pads, and knows a chat's template."""
    import tokenizers
    import transformers

    words = ("<pad>", "<unk>", "<bos>", *_TINY["WORDS"])
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", words.index("<bos>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        model_max_length=64,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def language_model(kind: str, vocabulary: int) -> Any:
    """A text encoder of a class of transformers, such as ``Gemma`` or ``Qwen3``."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
    )
    return getattr(transformers, f"{kind}Model")(config)


def lumina() -> Any:
    """Its positions are complex numbers, and its text is as long as the batch's longest prompt."""
    import diffusers

    tokenizer = word_tokenizer()
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=WIDTH,
    )
    return diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(levels=4),  # this pipeline takes eight pixels a latent for granted
        text_encoder=language_model("Gemma", len(tokenizer)),
        tokenizer=tokenizer,
    )


def lumina_2() -> Any:
    """It calls its network once for each guidance half, and joins text and image tokens."""
    import diffusers

    tokenizer = word_tokenizer()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 8, 8),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(levels=4, shift_factor=0.0),
        text_encoder=language_model("Gemma2", len(tokenizer)),
        tokenizer=tokenizer,
    )


def z_image() -> Any:
    """Its network takes and gives a list with one tensor for each image."""
    import diffusers

    tokenizer = word_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 4],
        axes_lens=[128, 16, 16],
    )
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.0),
        text_encoder=language_model("Qwen3", len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "lumina": lumina,
    "lumina-2": lumina_2,
    "z-image": z_image,
}


def save(name: str, folder: Path) -> Path:
    """Write the pipeline of that name, always with the same weights."""
    return Path(_TINY["write"](PIPELINES[name], folder))
