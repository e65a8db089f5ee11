"""Reads the signature of a pipeline's class from diffusers' source, without importing it. No torch.

So a plan refuses what cannot be drawn from noise and prompts or classes, before anything runs.
"""

import ast
import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.errors import BrokenModel

PIPELINES = "pipelines/**/*pipeline*.py"
SCHEDULERS = "schedulers/scheduling_*.py"
"""Where diffusers' classes are defined."""
OFFERED = frozenset({"prompt", "class_labels", "batch_size", "num_inference_steps", "generator"})
"""Arguments of a pipeline that a workload can give."""
_KINDS = (
    (
        {"controlnet_conditioning_scale", "control_image", "adapter_conditioning_scale"},
        "ControlNet",
    ),
    ({"mask_image", "masked_image_latents"}, "inpainting"),
    (
        {
            "num_frames",
            "frames",
            "video",
            "video_length",
            "num_video_frames",
            "num_videos_per_prompt",
        },
        "video",
    ),
    (
        {
            "audio_length_in_s",
            "audio_end_in_s",
            "audio_duration",
            "audio_duration_s",
            "num_waveforms_per_prompt",
        },
        "audio",
    ),
)
"""Arguments by which a kind of pipeline is known, and its name."""
_EDITS = {"strength", "image_guidance_scale", "noise_level"}
"""Arguments of pipelines that need their ``image``, whatever their signature says."""


@dataclass(frozen=True, slots=True)
class CallSignature:
    """The arguments of a pipeline's call.

    Attributes:
        names: all arguments by name.
        required: those without a default.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]


def require_drawable(folder: Path) -> None:
    """Refuse a pipeline that needs more than noise and prompts or classes, or draws no images.

    A class that is not part of diffusers is not judged: its call says later what it lacks.

    Raises:
        BrokenModel: one line that names the kind of pipeline.
    """
    name = class_name(folder)
    signature = call_signature(name) if name else None
    if signature is None:
        return
    kind = kind_of(signature)
    if kind:
        raise BrokenModel(
            f"{folder} is a pipeline for {kind} ({name}): a workload draws images from noise and "
            "prompts or classes alone; give a text-to-image, class or unconditional pipeline"
        )


def kind_of(signature: CallSignature) -> str | None:
    """What a pipeline is for, if a workload cannot draw with it; else None."""
    names = set(signature.names)
    for marks, kind in _KINDS:
        if marks & names:
            return kind
    # A text-to-image pipeline that also takes an image to edit has a size of its own.
    if "image" in names and (_EDITS & names or not {"height", "width"} <= names):
        return "image to image"
    if "prompt" in names and "height" not in names:  # a prior, a language model, shapes
        return "something other than images"
    missing = [name for name in signature.required if name not in OFFERED]
    return f"a call with {missing[0]!r}" if missing else None


def class_name(folder: Path) -> str | None:
    """The class of a pipeline folder; None if its index does not say."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = index.get("_class_name") if isinstance(index, dict) else None
    return name if isinstance(name, str) else None


@functools.cache
def call_signature(name: str) -> CallSignature | None:
    """The signature of ``__call__`` of a pipeline class of diffusers; None if there is none."""
    return method_signature(name, "__call__", PIPELINES)


def method_signature(name: str, method: str, places: str) -> CallSignature | None:
    """The signature of a method of a class in diffusers' files; None if there is none."""
    found = class_source(name, places)
    if found is None:
        return None
    for item in found.body:
        if isinstance(item, ast.FunctionDef) and item.name == method:
            return _signature(item.args)
    for base in found.bases:
        if isinstance(base, ast.Name) and (inherited := method_signature(base.id, method, places)):
            return inherited
    return None


def _signature(given: ast.arguments) -> CallSignature:
    positional = [a.arg for a in (*given.posonlyargs, *given.args)][1:]  # without self
    required = positional[: max(0, len(positional) - len(given.defaults))]
    required += [
        argument.arg
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        if default is None
    ]
    return CallSignature((*positional, *(a.arg for a in given.kwonlyargs)), tuple(required))


@functools.cache
def class_source(name: str, places: str) -> ast.ClassDef | None:
    """The syntax tree of a class in diffusers' files; None if there is none.

    Args:
        name: of the class.
        places: pattern of the files, below the folder of diffusers.
    """
    for file in _sources(places):
        text = file.read_text(encoding="utf-8")
        if f"class {name}(" not in text and f"class {name}:" not in text:
            continue
        for item in ast.parse(text).body:
            if isinstance(item, ast.ClassDef) and item.name == name:
                return item
    return None


@functools.cache
def _sources(places: str) -> tuple[Path, ...]:
    found = importlib.util.find_spec("diffusers")
    folders = found.submodule_search_locations if found else None
    return tuple(sorted(Path(next(iter(folders))).glob(places))) if folders else ()
