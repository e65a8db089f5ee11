"""One tiny pipeline with random weights of every class that people quantize, made from configs.

8x8 latents, two sampler steps; tokenizers are made here, so that nothing is downloaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "blue", "cat", "dog", "of", "in", "snow")
WIDTH = 16
"""Of text features."""


def autoencoder(levels: int = 2, **more: Any) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=2,
        **{"latent_channels": 4, **more},
    )


def clip_tokenizer() -> Any:
    import transformers

    made = transformers.CLIPTokenizer().train_new_from_iterator([" ".join(WORDS)], vocab_size=300)
    made.model_max_length = 8
    return made


def t5_tokenizer() -> Any:
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = 8
    return tokenizer


def clip_text(vocabulary: int, kind: str = "CLIPTextModel") -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=WIDTH,
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=1,
    )
    return getattr(transformers, kind)(config)


def t5_text(vocabulary: int, width: int = WIDTH) -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config)


def conditional_unet(**more: Any) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **{"cross_attention_dim": WIDTH, "attention_head_dim": 2, **more},
    )


def pixel_unet(**more: Any) -> Any:
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **more,
    )


def ddpm() -> Any:
    import diffusers

    return diffusers.DDPMPipeline(pixel_unet(), diffusers.DDPMScheduler())


def ldm() -> Any:
    import diffusers

    vqvae = diffusers.VQModel(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=3,
        num_vq_embeddings=8,
    )
    return diffusers.LDMPipeline(vqvae, pixel_unet(), diffusers.DDIMScheduler())


def stable_diffusion() -> Any:
    import diffusers

    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(len(tokenizer)),
        tokenizer=tokenizer,
        unet=conditional_unet(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2() -> Any:
    """Version 2: linear projections and velocity prediction."""
    import diffusers

    made = stable_diffusion()
    unet = conditional_unet(use_linear_projection=True)
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        **{**made.components, "unet": unet, "scheduler": scheduler}, requires_safety_checker=False
    )


def stable_diffusion_xl() -> Any:
    import diffusers

    tokenizer = clip_tokenizer()
    unet = conditional_unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1),
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(len(tokenizer)),
        text_encoder_2=clip_text(len(tokenizer), "CLIPTextModelWithProjection"),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def stable_diffusion_3() -> Any:
    import diffusers

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    projected = "CLIPTextModelWithProjection"
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.0),
        text_encoder=clip_text(len(clip), projected),
        tokenizer=clip,
        text_encoder_2=clip_text(len(clip), projected),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(len(t5), 2 * WIDTH),
        tokenizer_3=t5,
    )


def pixart(kind: str = "PixArtAlphaPipeline") -> Any:
    import diffusers

    tokenizer = t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    return getattr(diffusers, kind)(
        tokenizer=tokenizer,
        text_encoder=t5_text(len(tokenizer)),
        vae=autoencoder(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def pixart_sigma() -> Any:
    return pixart("PixArtSigmaPipeline")


def dit() -> Any:
    import diffusers

    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
    )
    return diffusers.DiTPipeline(transformer, autoencoder(), diffusers.DDIMScheduler())


def flux() -> Any:
    import diffusers

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.0),
        text_encoder=clip_text(len(clip)),
        tokenizer=clip,
        text_encoder_2=t5_text(len(t5)),
        tokenizer_2=t5,
    )


def ldm_text() -> Any:
    import diffusers
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = transformers.BertTokenizer(
        vocab={word: place for place, word in enumerate(vocabulary)}
    )
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    config = LDMBertConfig(
        vocab_size=len(vocabulary),
        d_model=WIDTH,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        head_dim=8,
        max_position_embeddings=77,
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=autoencoder(levels=4),  # this pipeline takes eight pixels a latent for granted
        bert=LDMBertModel(config),
        tokenizer=tokenizer,
        unet=conditional_unet(),
        scheduler=diffusers.DDIMScheduler(),
    )


def consistency(classes: int | None = None) -> Any:
    import diffusers

    unet = pixel_unet(num_class_embeds=classes)
    scheduler = diffusers.CMStochasticIterativeScheduler()
    return diffusers.ConsistencyModelPipeline(unet, scheduler)


def hunyuan_dit() -> Any:
    import diffusers
    import transformers

    tokenizer, second = transformers.BertTokenizer(vocab=_bert_words()), t5_tokenizer()
    tokenizer.model_max_length = 8
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=4,
        hidden_size=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    return diffusers.HunyuanDiTPipeline(
        vae=autoencoder(),
        text_encoder=transformers.BertModel(config),
        tokenizer=tokenizer,
        text_encoder_2=t5_text(len(second)),
        tokenizer_2=second,
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _bert_words() -> dict[str, int]:
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    return {word: number for number, word in enumerate(words)}


PIPELINES: dict[str, Callable[[], Any]] = {
    "ddpm": ddpm,
    "ldm": ldm,
    "ldm-text": ldm_text,
    "sd1": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "pixart-alpha": pixart,
    "pixart-sigma": pixart_sigma,
    "dit": dit,
    "flux": flux,
    "consistency": consistency,
    "consistency-class": lambda: consistency(10),
    "hunyuan-dit": hunyuan_dit,
}


def save(name: str, folder: Path) -> Path:
    """Write the pipeline of that name, always with the same weights."""
    return write(PIPELINES[name], folder)


def write(make: Callable[[], Any], folder: Path) -> Path:
    """Write the pipeline that ``make`` makes, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = make()
    pipe.save_pretrained(folder)
    return folder
