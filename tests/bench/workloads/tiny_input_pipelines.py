"""Tiny pipelines that start from images, paint in them or follow them, and pipelines of videos."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

_TINY = runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))
WIDTH: int = _TINY["WIDTH"]
SIDE = 16
FRAMES = 5


def of_parts(base: str, kind: str, **more: Any) -> Any:
    """A pipeline of the parts of another one, some of them replaced."""
    import diffusers

    made = _TINY["PIPELINES"][base]()
    options = {"requires_safety_checker": False} if base in ("sd1", "sd2") else {}
    return getattr(diffusers, kind)(**(made.components | more), **options)


def control_network(**more: Any) -> Any:
    """Its last convolutions are zeros in a new one: it would change nothing."""
    import diffusers

    made = diffusers.ControlNetModel(
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
        **{"cross_attention_dim": WIDTH, "attention_head_dim": 2, **more},
    )
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    made.controlnet_cond_embedding.conv_out.weight.data.mul_(8)  # so that its image is felt
    return made


def controlled_xl() -> Any:
    control = control_network(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1),
    )
    return of_parts(
        "sdxl", "StableDiffusionXLControlNetPipeline", controlnet=control, add_watermarker=False
    )


def inpainting() -> Any:
    """The network of nine channels reads the mask and the masked image."""
    unet = _TINY["conditional_unet"](in_channels=9)
    return of_parts("sd2", "StableDiffusionInpaintPipeline", unet=unet)


def wan(**more: Any) -> Any:
    import diffusers
    import transformers

    tokenizer = _TINY["t5_tokenizer"]()
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.UMT5EncoderModel(config),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_network(),
        **more,
    )


def wan_network() -> Any:
    import diffusers

    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def ltx() -> Any:
    import diffusers

    tokenizer = _TINY["t5_tokenizer"]()
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=WIDTH,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=_TINY["t5_text"](len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def cogvideo() -> Any:
    import diffusers

    tokenizer = _TINY["t5_tokenizer"]()
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=FRAMES,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=_TINY["t5_text"](len(tokenizer)),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


IMAGES: dict[str, Callable[[], Any]] = {
    "sd1-img2img": lambda: of_parts("sd1", "StableDiffusionImg2ImgPipeline"),
    "sd2-inpaint": inpainting,
    "sd1-controlnet": lambda: of_parts(
        "sd1", "StableDiffusionControlNetPipeline", controlnet=control_network()
    ),
    "sd2-controlnet-img2img": lambda: of_parts(
        "sd2", "StableDiffusionControlNetImg2ImgPipeline", controlnet=control_network()
    ),
    "sdxl-img2img": lambda: of_parts(
        "sdxl", "StableDiffusionXLImg2ImgPipeline", add_watermarker=False
    ),
    "sdxl-inpaint": lambda: of_parts(
        "sdxl", "StableDiffusionXLInpaintPipeline", add_watermarker=False
    ),
    "sdxl-controlnet": controlled_xl,
    "sd3-img2img": lambda: of_parts("sd3", "StableDiffusion3Img2ImgPipeline"),
    "flux-img2img": lambda: of_parts("flux", "FluxImg2ImgPipeline"),
}
VIDEOS: dict[str, Callable[[], Any]] = {"wan": wan, "ltx": ltx, "cogvideox": cogvideo}
PIPELINES = IMAGES | VIDEOS
FOLDERS = {
    "sd1-img2img": ("images",),
    "sd2-inpaint": ("images", "masks"),
    "sd1-controlnet": ("control",),
    "sd2-controlnet-img2img": ("images", "control"),
    "sdxl-img2img": ("images",),
    "sdxl-inpaint": ("images", "masks"),
    "sdxl-controlnet": ("control",),
    "sd3-img2img": ("images",),
    "flux-img2img": ("images",),
}
"""Condition images that each takes."""


def settings(name: str, folder: Path) -> dict[str, Any]:
    """What the ``workload.json`` of a pipeline says; its condition images are written."""
    found: dict[str, Any] = {
        "steps": 2,
        "guidance": 3.0,
        "resolution": 32 if name == "ltx" else SIDE,
        "conditions": {"kind": "prompt", "values": ["a red cat", "a dog in snow"]},
    }
    for kind in FOLDERS.get(name, ()):
        write_pictures(folder / kind, 4, mask=kind == "masks")
        found[kind] = kind
    if name in VIDEOS:
        found["call.num_frames"] = FRAMES
    if "img2img" in name:
        found |= {"steps": 4, "call.strength": 0.5}
    return found


def write_pictures(folder: Path, count: int, *, mask: bool = False, seed: int = 0) -> Path:
    """Pictures of coloured halves, wider than high; masks are white on the right."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(seed)
    for number in range(count):
        picture = np.zeros((SIDE, SIDE + 4, 3), np.uint8)
        picture[:, SIDE // 2 :] = 255 if mask else source.integers(0, 256, 3)
        if not mask:
            picture[: SIDE // 2] = source.integers(0, 256, 3)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def save(name: str, folder: Path) -> Path:
    """Write the pipeline of that name, always with the same weights."""
    return Path(_TINY["write"](PIPELINES[name], folder))
