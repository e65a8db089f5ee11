"""Further tiny pipelines, for exports alone: those that share their parts with others."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TINY = runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))
WIDTH: int = _TINY["WIDTH"]


def ddim() -> Any:
    import diffusers

    return diffusers.DDIMPipeline(_TINY["pixel_unet"](), diffusers.DDIMScheduler())


def latent_consistency() -> Any:
    """Guidance is an input of its network."""
    import diffusers

    made = _TINY["stable_diffusion"]().components
    made |= {
        "unet": _TINY["conditional_unet"](time_cond_proj_dim=8),
        "scheduler": diffusers.LCMScheduler(),
    }
    return diffusers.LatentConsistencyModelPipeline(**made, requires_safety_checker=False)


def chroma() -> Any:
    """Its modulations are made by one small network for all blocks."""
    import diffusers

    tokenizer = _TINY["t5_tokenizer"]()
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_TINY["autoencoder"](shift_factor=0.0),
        text_encoder=_TINY["t5_text"](len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def aura_flow() -> Any:
    import diffusers

    tokenizer = _TINY["t5_tokenizer"]()
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=_TINY["t5_text"](len(tokenizer)),
        vae=_TINY["autoencoder"](),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def perturbed(name: str, kind: str, **more: Any) -> Any:
    """A pipeline with perturbed attention guidance, of the parts of another one."""
    import diffusers

    return getattr(diffusers, kind)(**_TINY["PIPELINES"][name]().components, **more)


PIPELINES: dict[str, Callable[[], Any]] = {
    "ddim": ddim,
    "lcm": latent_consistency,
    "chroma": chroma,
    "aura-flow": aura_flow,
    "sd1-pag": lambda: perturbed(
        "sd2", "StableDiffusionPAGPipeline", requires_safety_checker=False
    ),
    "sdxl-pag": lambda: perturbed("sdxl", "StableDiffusionXLPAGPipeline", add_watermarker=False),
    "pixart-sigma-pag": lambda: perturbed("pixart-sigma", "PixArtSigmaPAGPipeline"),
}


def save(name: str, folder: Path) -> Path:
    """Write the pipeline of that name, always with the same weights."""
    return Path(_TINY["write"](PIPELINES[name], folder))
