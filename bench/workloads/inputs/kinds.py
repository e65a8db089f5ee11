"""Which condition images a class of pipeline takes, and which it cannot draw without. No torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quantarena.bench.errors import UserError

IMAGES, MASKS, CONTROL = "images", "masks", "control"
FOLDERS = (IMAGES, MASKS, CONTROL)
"""The settings that name a folder of condition images."""
ARGUMENTS = frozenset({"image", "mask_image", "control_image"})
"""The arguments by which pipelines are given them."""
_CONTROL_SCALES = {"controlnet_conditioning_scale", "adapter_conditioning_scale"}
_EDITS = {"strength", "image_guidance_scale", "noise_level"}
"""Arguments of pipelines that need their ``image``, whatever their signature says."""
IN_BATCHES = frozenset(
    {
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "FluxImg2ImgPipeline",
    }
)
"""Classes whose list of images is one image for each prompt, to which tests hold them. To others
several images may mean several images of one prompt, so they draw one image a call."""


@dataclass(frozen=True, slots=True)
class ImageNeeds:
    """The condition images of a class of pipeline.

    Attributes:
        arguments: setting to argument of the call, for all that it takes.
        needed: the settings without which it cannot draw.
    """

    arguments: Mapping[str, str]
    needed: tuple[str, ...]


def image_needs(
    takes: Collection[str], required: Collection[str] = (), *, uses_image: bool = False
) -> ImageNeeds:
    """The condition images of a pipeline, by the arguments of its call.

    Args:
        takes: the names of all arguments.
        required: those without a default.
        uses_image: whether the code of the call uses ``image`` as if it were always given.
    """
    names = set(takes)
    arguments = {}
    controlled = bool(_CONTROL_SCALES & names)
    if "control_image" in names:
        arguments[CONTROL] = "control_image"
    elif controlled and "image" in names:
        arguments[CONTROL] = "image"
    if "mask_image" in names:
        arguments[MASKS] = "mask_image"
    if "image" in names and arguments.get(CONTROL) != "image":
        arguments[IMAGES] = "image"
    needed = [setting for setting in (MASKS, CONTROL) if setting in arguments]
    # A text-to-image pipeline that also takes an image to edit has a size of its own.
    if IMAGES in arguments and (
        uses_image
        or "image" in required
        or MASKS in arguments
        or _EDITS & names
        or not {"height", "width"} <= names
    ):
        needed.insert(0, IMAGES)
    return ImageNeeds(arguments, tuple(needed))


def require_folders(kind: str, needs: ImageNeeds, given: Collection[str], workload: str) -> None:
    """Check that a workload gives the condition images of its pipeline, and no others.

    Raises:
        UserError: one line that names the setting.
    """
    for setting in FOLDERS:
        if setting in given and setting not in needs.arguments:
            taken = ", ".join(needs.arguments) or "none"
            raise UserError(
                f"{workload}: {kind} takes no {setting}: leave {setting} out (it takes {taken})"
            )
        if setting in needs.needed and setting not in given:
            raise UserError(
                f"{workload}: {kind} draws from {_WHAT[setting]}, and the workload names none: "
                f"give their folder with --set {setting}=DIR"
            )


_WHAT = {IMAGES: "images", MASKS: "masks", CONTROL: "control images"}


def most_in_batch(kind: str, given: Collection[Any], batch: int) -> int:
    """How many images one call of a pipeline may draw.

    Args:
        kind: class of the pipeline.
        given: its condition images.
        batch: how many are asked for.
    """
    return batch if not given or kind in IN_BATCHES else 1
