"""The settings of a workload, from its ``workload.json`` and from the command line. No torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.workloads.conditions import class_range, read_conditions

FILE = "workload.json"
PATHS = ("prompts", "classes", "reference", "model")
KEYS = ("sampler", "steps", "guidance", "eta", "resolution", "column", *PATHS)
KINDS = ("none", "class", "prompt")


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


def read_settings(folder: Path, base: Settings) -> Settings:
    """``base`` changed by the folder's ``workload.json``, if there is one.

    Raises:
        BrokenModel: the file is no JSON, or a value is out of range.
        UserError: the file of its conditions cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return base
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BrokenModel(f"{file} must hold one JSON object")
    plain: dict[str, Any] = {n: str(found[n]) for n in ("title", "licence") if n in found}
    numbers = {
        n: found[n] for n in ("sampler", "steps", "guidance", "eta", "resolution") if n in found
    }
    try:
        made = replace(base, **plain, **_checked(numbers))
    except ValueError as error:
        raise BrokenModel(f"{file}: {error}") from None
    if "reference" in found:
        made = replace(made, reference=str(found["reference"]))
    if "conditions" in found:
        made = _with_conditions(made, found["conditions"], folder, file)
    return made


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
        made = replace(base, **_checked({k: v for k, v in given.items() if k not in PATHS}))
        if "prompts" in given and "classes" in given:
            raise ValueError("prompts and classes exclude each other")
    except ValueError as error:
        raise UserError(f"workload {name}: {error}") from None
    column = given.get("column", "")
    if "prompts" in given:
        values = read_conditions(Path(given["prompts"]), "prompt", column)
        made = replace(made, conditions="prompt", prompts=values)
    if "classes" in given:
        values = class_range(given["classes"])
        if not values:
            values = read_conditions(Path(given["classes"]), "class", column)
        made = replace(made, conditions="class", prompts=values)
    return replace(made, reference=given.get("reference", made.reference))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read numbers and check their ranges. Raises ValueError with one line."""
    found: dict[str, Any] = {}
    for name, low, high in (("guidance", 0.0, math.inf), ("eta", 0.0, 1.0)):
        if name in given:
            found[name] = value = _number(name, given[name], float)
            if not low <= value <= high or math.isinf(value):
                limit = f"from {low:g} to {high:g}" if high < math.inf else "0 or more"
                raise ValueError(f"{name} must be {limit}, not {given[name]}")
    for name, least in (("steps", 1), ("resolution", 0)):
        if name in given:
            found[name] = value = _number(name, given[name], int)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {given[name]}")
    if "sampler" in given:
        found["sampler"] = str(given["sampler"])
    return found


def _number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    what = "a whole number" if kind is int else "a number"
    try:
        found = kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {what}, not {value!r}") from None
    if isinstance(value, float) and value != found:
        raise ValueError(f"{name} must be {what}, not {value!r}")
    return found


def _with_conditions(made: Settings, found: Any, folder: Path, file: Path) -> Settings:
    if not isinstance(found, dict) or found.get("kind", "none") not in KINDS:
        raise BrokenModel(f'{file}: "conditions" needs a "kind" of {", ".join(KINDS)}')
    kind = str(found.get("kind", "none"))
    if "file" in found:
        place = folder / str(found["file"])
        values = read_conditions(place, kind, str(found.get("column", "")))
    else:
        values = tuple(str(value) for value in found.get("values", ()))
    return replace(made, conditions=kind, prompts=values)
