"""The settings of a workload, from its ``workload.json`` and from the command line. No torch."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantarena.bench.adapters.request import LoraRequest
from quantarena.bench.documents import parse_json
from quantarena.bench.errors import BrokenModel, UserError, did_you_mean
from quantarena.bench.files import read_text
from quantarena.bench.workloads.conditions import class_range, read_conditions
from quantarena.bench.workloads.inputs import arguments
from quantarena.bench.workloads.inputs.arguments import CALL, SAMPLER, is_argument
from quantarena.bench.workloads.inputs.kinds import FOLDERS

FILE = "workload.json"
PATHS = ("prompts", "classes", "reference", "model", *FOLDERS)
LORA = "lora"
KEYS = ("sampler", "steps", "guidance", "eta", "resolution", "outliers", "column", LORA, *PATHS)
KINDS = ("none", "class", "prompt")
_VALUES = ("sampler", "steps", "guidance", "eta", "resolution")
_TEXTS = ("title", "licence", "reference")
FILE_KEYS = (*_TEXTS, *_VALUES, *FOLDERS, "conditions", "name", "pipeline_class")
"""The keys of ``workload.json``; the last two are for readers."""
CONDITIONS_KEYS = ("kind", "file", "column", "values", "names")
"""The keys of its ``conditions``; ``names`` is for readers."""
MOST_STEPS = 100_000
MOST_PIXELS = 1 << 16
MOST_OUTLIERS = 8.0
"""Channels times 2^13 at most: no trained model has larger ones."""
_LIMITS = (("guidance", 0.0, math.inf), ("eta", 0.0, 1.0), ("outliers", 0.0, MOST_OUTLIERS))
_OTHER_WORDS = {
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "scheduler": "sampler",
    "height": "resolution",
    "width": "resolution",
    "image": "images",
    "mask_image": "masks",
    "control_image": "control",
    "strength": "call.strength",
    "num_frames": "call.num_frames",
    "negative_prompt": "call.negative_prompt",
}
"""What diffusers calls a setting, and what it is called here."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that, with the weights, decide the images of a pipeline.

    Attributes:
        title: one line for readers, or "".
        sampler: scheduler class of diffusers; "" for that of the pipeline.
        steps: sampler steps.
        guidance: scale of classifier-free guidance; 1 turns it off.
        eta: share of fresh noise in DDIM, 0 to 1.
        resolution: side of the images in pixels; 0 for that of the pipeline.
        conditions: ``none``, ``class`` or ``prompt``.
        prompts: prompts or class numbers, in order.
        reference: real images, see ``WorkloadInfo``.
        licence: licence of weights and data.
        outliers: strength of planted outliers; 0 leaves the model as it is. A folder's own settings
            have none: it would no longer be the model that its files hold.
        lora: a LoRA that evaluation images are drawn with, see ``adapters.request``, or "". A
            folder's own settings have none.
        folders: condition images, setting to folder, by ``FOLDERS``.
        call: further arguments of the pipeline's call, see ``inputs.arguments``.
        sampler_options: arguments of the scheduler's configuration, likewise.
    """

    title: str = ""
    sampler: str = ""
    steps: int = 20
    guidance: float = 1.0
    eta: float = 0.0
    resolution: int = 0
    conditions: str = "none"
    prompts: tuple[str, ...] = ()
    reference: str = ""
    licence: str = "not stated"
    outliers: float = 0.0
    lora: str = ""
    folders: tuple[tuple[str, Path], ...] = ()
    call: arguments.Pairs = ()
    sampler_options: arguments.Pairs = ()


def read_settings(folder: Path, base: Settings) -> Settings:
    """``base`` changed by the folder's ``workload.json``, if there is one.

    Raises:
        BrokenModel: the file is no JSON, it has an unknown key, or a value is out of range.
        UserError: the file of its conditions cannot be read.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        return base
    try:
        document = parse_json(read_text(file))
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None
    try:
        _require_keys(document, FILE_KEYS, "it")
        texts: dict[str, Any] = {n: _text(n, document[n]) for n in _TEXTS if n in document}
        numbers = {name: document[name] for name in _VALUES if name in document}
        settings = replace(base, **texts, **_checked(numbers))
        places = {n: folder / _text(n, document[n]) for n in FOLDERS if n in document}
        settings = _with_inputs(settings, places, document, texts=False)
        if "conditions" in document:
            settings = _with_conditions(settings, document["conditions"], folder)
    except ValueError as error:
        raise BrokenModel(f"{file}: {error}") from None
    return settings


def require_known(name: str, known: tuple[str, ...]) -> None:
    """Refuse a setting that does not exist.

    Raises:
        UserError: it is not among the known ones; the line suggests one.
    """
    if name in known or ("sampler" in known and is_argument(name)):
        return
    other = _OTHER_WORDS.get(name)
    if other is None and name in PATHS and "conditions" in known:
        other = "conditions"
    hint = f"it is called {other} here" if other else did_you_mean(name, known)
    raise UserError(f"unknown setting {name!r}: {hint}")


def apply(base: Settings, given: Mapping[str, str], name: str) -> Settings:
    """``base`` changed by the settings of the command line.

    Args:
        base: the settings of the workload.
        given: setting to value; paths are absolute.
        name: the workload's name, for messages.

    Raises:
        UserError: a value is out of range, or its file cannot be read.
    """
    try:
        made = replace(
            base, **_checked({k: v for k, v in given.items() if k not in (*PATHS, LORA)})
        )
        places = {name: Path(given[name]) for name in FOLDERS if name in given}
        made = _with_inputs(made, places, given, texts=True)
        if "prompts" in given and "classes" in given:
            raise ValueError("prompts and classes exclude each other")
    except ValueError as error:
        raise UserError(f"workload {name}: {error}") from None
    column = given.get("column", "")
    if column and not any(Path(given.get(n, "")).suffix for n in ("prompts", "classes")):
        raise UserError(
            f"workload {name}: column={column} says nothing without a table: prompts=FILE.csv"
        )
    if "prompts" in given:
        values = read_conditions(Path(given["prompts"]), "prompt", column)
        made = replace(made, conditions="prompt", prompts=values)
    if "classes" in given:
        values = class_range(given["classes"])
        if not values:
            values = read_conditions(Path(given["classes"]), "class", column)
        made = replace(made, conditions="class", prompts=values)
    if LORA in given:
        LoraRequest.read(given[LORA]).shapes()  # whoever plans a run hears what is wrong with it
        made = replace(made, lora=given[LORA])
        if made.outliers:
            raise UserError(f"workload {name}: lora fits the model without outliers: leave one out")
    return replace(made, reference=given.get("reference", made.reference))


def _with_inputs(
    base: Settings, folders: Mapping[str, Path], given: Mapping[str, Any], *, texts: bool
) -> Settings:
    """``base`` with other condition images, and with further arguments of calls and samplers.

    Raises:
        ValueError: a size is given twice.
    """
    made = replace(
        base,
        folders=tuple({**dict(base.folders), **folders}.items()),
        call=arguments.changed(base.call, arguments.pairs(given, CALL, texts=texts)),
        sampler_options=arguments.changed(
            base.sampler_options, arguments.pairs(given, SAMPLER, texts=texts)
        ),
    )
    sides = [name for name in ("height", "width") if name in dict(made.call)]
    if len(sides) == 1:
        raise ValueError(f"call.{sides[0]} alone is no size: give call.height and call.width")
    for name in sides:
        value = arguments.values(made.call)[name]
        if type(value) is not int or not 0 < value <= MOST_PIXELS:
            raise ValueError(f"call.{name} must be a number of pixels, not {value!a:.40}")
    if sides and made.resolution:
        raise ValueError(
            f"resolution={made.resolution} and call.height exclude each other: give one "
            "(resolution=0 leaves a folder's own out)"
        )
    return made


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read numbers and check their ranges. Raises ValueError with one line."""
    checked: dict[str, Any] = {}
    for name, low, high in _LIMITS:
        if name in given:
            checked[name] = value = _number(name, given[name], float)
            if not low <= value <= high or math.isinf(value):
                limit = f"from {low:g} to {high:g}" if high < math.inf else "0 or more"
                raise ValueError(f"{name} must be {limit}, not {given[name]}")
    for name, least, most in (("steps", 1, MOST_STEPS), ("resolution", 0, MOST_PIXELS)):
        if name in given:
            checked[name] = value = _number(name, given[name], int)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {given[name]}")
            if value > most:
                raise ValueError(f"{name} must be at most {most}, not {str(given[name])[:40]}")
    if "sampler" in given:
        checked["sampler"] = _text("sampler", given["sampler"])
    return checked


def _number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    what = "a whole number" if kind is int else "a number"
    refusal = ValueError(f"{name} must be {what}, not {repr(value)[:60]}")
    if isinstance(value, bool):
        raise refusal
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise refusal from None
    if isinstance(value, float) and not math.isnan(value) and value != number:
        raise refusal
    return number


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {repr(value)[:60]}")
    return value


def _require_keys(document: Any, known: tuple[str, ...], what: str) -> None:
    if not isinstance(document, dict):
        raise ValueError(f"{what} must hold one JSON object")
    for name in document:
        try:
            require_known(name, known)
        except UserError as error:
            raise ValueError(str(error)) from None


def _with_conditions(settings: Settings, conditions: Any, folder: Path) -> Settings:
    """The settings with the conditions of ``workload.json``. Raises ValueError with one line."""
    _require_keys(conditions, CONDITIONS_KEYS, '"conditions"')
    kind = conditions.get("kind", "none")
    if kind not in KINDS:
        raise ValueError(f'"conditions" needs a "kind" of {", ".join(KINDS)}')
    sources = [name for name in ("file", "values") if name in conditions]
    if len(sources) > 1 or (kind == "none" and any(conditions[name] for name in sources)):
        raise ValueError(f'"conditions" of kind {kind} and {" and ".join(sources)}: give one')
    if "column" in conditions and "file" not in conditions:
        raise ValueError('"column" of "conditions" says nothing without "file"')
    if "file" in conditions:
        place = folder / _text("file", conditions["file"])
        values = read_conditions(place, kind, _text("column", conditions.get("column", "")))
    else:
        values = _listed(kind, conditions.get("values", []))
    return replace(settings, conditions=kind, prompts=values)


def _listed(kind: str, values: Any) -> tuple[str, ...]:
    """The values of ``conditions``: texts, or class numbers."""
    if not isinstance(values, list):
        raise ValueError(f'"values" must be a list, not {repr(values)[:60]}')
    for value in values:
        plain = isinstance(value, str | int) and not isinstance(value, bool)
        if not plain or (kind == "class" and not str(value).isdecimal()):
            raise ValueError(f'{repr(value)[:60]} of "values" is no {kind}')
    return tuple(str(value) for value in values)
