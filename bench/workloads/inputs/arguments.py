"""Settings with a dot: ``call.NAME`` is an argument of a call, ``sampler.NAME`` one of a sampler.

Values are JSON; a text that is no JSON is a text. They are kept as canonical JSON, so that equal
values give equal names and keys. No torch.
"""

import ast
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from quantarena.bench.documents import parse_json
from quantarena.bench.errors import UserError, did_you_mean

CALL, SAMPLER = "call.", "sampler."
Pairs = tuple[tuple[str, str], ...]
"""Names without their prefix, in order, and their values as canonical JSON."""
OWNED = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "eta": "eta",
    "prompt": "prompts",
    "class_labels": "classes",
    "image": "images",
    "mask_image": "masks",
    "control_image": "control",
    "generator": "--seed",
    "batch_size": "--batch",
}
"""Arguments that have a setting or an option of their own."""
_HARNESS = {
    "latents": "noise is made of workload, seed and image",
    "output_type": "images are read as arrays",
    "return_dict": "images are read as arrays",
    "num_images_per_prompt": "each image has a prompt and noise of its own",
    "num_videos_per_prompt": "each video has a prompt and noise of its own",
    "num_waveforms_per_prompt": "each image has a prompt and noise of its own",
    "timesteps": "steps and sampler decide them",
    "sigmas": "steps and sampler decide them",
    "args": "an argument needs a name",
    "kwargs": "an argument needs a name",
}
"""Arguments that nobody can set, and why."""
_PROMPT = re.compile(r"(negative_)?prompt(_\d)?")
"""What has one text for each image; others, such as a system prompt, have one for all."""
_TENSORS = ("_embeds", "_latents", "_attention_mask", "ip_adapter_image")


def is_argument(key: str) -> bool:
    """Whether a setting is one of these.

    >>> is_argument("call.strength"), is_argument("sampler"), is_argument("sampler.")
    (True, False, False)
    """
    prefix, dot, name = key.partition(".")
    return bool(dot) and f"{prefix}." in (CALL, SAMPLER) and name.isidentifier()


def canonical(key: str, text: str) -> str:
    """The canonical text of a value of the command line.

    >>> canonical("call.strength", "0.50"), canonical("call.negative_prompt", "a dog")
    ('0.5', 'a dog')

    Raises:
        UserError: the value is a number that JSON does not have, or half a list or object.
    """
    try:
        value = parse_json(text)
    except ValueError:
        if text.lstrip("+-").lower() in ("nan", "inf", "infinity"):
            raise UserError(f"setting {key} must be a finite number, not {text}") from None
        if text[:1] in ("{", "["):
            raise UserError(f"setting {key} is no JSON: {text[:60]}") from None
        return text
    if isinstance(value, str) and value and _reads_as(value) == value:
        return value
    return _json(value)


def pairs(given: Mapping[str, Any], prefix: str, *, texts: bool) -> Pairs:
    """The settings with a prefix, by name.

    Args:
        given: all settings.
        prefix: ``CALL`` or ``SAMPLER``.
        texts: whether values are texts of the command line; else they are JSON values.
    """
    found = {key: value for key, value in given.items() if is_argument(key)}
    return tuple(
        (key.removeprefix(prefix), _json(_reads_as(value) if texts else value))
        for key, value in sorted(found.items())
        if key.startswith(prefix)
    )


def values(given: Pairs) -> dict[str, Any]:
    """Names to values."""
    return {name: json.loads(text) for name, text in given}


def changed(base: Pairs, given: Pairs) -> Pairs:
    """``base`` with the values of ``given`` in place of its own."""
    return tuple(sorted((dict(base) | dict(given)).items()))


def require_arguments(
    kind: str, takes: Collection[str], defaults: Mapping[str, Any], given: Pairs, workload: str
) -> None:
    """Check arguments of a call against its signature.

    Args:
        kind: class of the pipeline.
        takes: the names of its arguments.
        defaults: of these, the defaults that are plain values.
        given: the arguments.
        workload: name of the workload, for messages.

    Raises:
        UserError: the harness gives the argument itself, the call has no such argument, or the
            value is of another type than its default.
    """
    for name, value in values(given).items():
        what = f"{workload}: call.{name}"
        if name in OWNED:
            raise UserError(f"{what} is set by {OWNED[name]}: leave call.{name} out")
        if name in _HARNESS or name.startswith("callback"):
            why = _HARNESS.get(name, "functions cannot be given")
            raise UserError(f"{what} cannot be set: {why}")
        if any(name.endswith(ending) for ending in _TENSORS):
            raise UserError(f"{what} cannot be set: it takes tensors or images")
        if name not in takes:
            hint = did_you_mean(name, takes)
            raise UserError(f"{what}: {kind} takes no argument {name!r}: {hint}")
        _require_fitting(what, kind, value, defaults.get(name))


def require_options(
    kind: str, takes: Collection[str], defaults: Mapping[str, Any], given: Pairs, workload: str
) -> None:
    """Check settings of a sampler against the signature of its class.

    Args:
        kind: class of the scheduler.
        takes: the names of its arguments.
        defaults: of these, the defaults that are plain values.
        given: the settings.
        workload: name of the workload, for messages.

    Raises:
        UserError: the class has no such argument, or the value is of another type.
    """
    for name, value in values(given).items():
        what = f"{workload}: sampler.{name}"
        if name not in takes:
            raise UserError(f"{what}: {kind} has no setting {name!r}: {did_you_mean(name, takes)}")
        _require_fitting(what, kind, value, defaults.get(name))


def _require_fitting(what: str, kind: str, value: Any, default: Any) -> None:
    if not _fits(value, default):
        raise UserError(
            f"{what} must be {_KINDS[type(default)]}, as the default {json.dumps(default)} of "
            f"{kind} is, not {json.dumps(value)[:60]}"
        )


def for_images(given: Pairs, count: int) -> dict[str, Any]:
    """Arguments of one call for some images: a second prompt is given once for each of them."""
    return {
        name: [value] * count if _PROMPT.fullmatch(name) and isinstance(value, str) else value
        for name, value in values(given).items()
    }


def plain_default(node: ast.expr | None) -> Any:
    """The default that stands in a signature, where it is a number, a text or a truth value."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) in _KINDS else None


PLAIN = (bool, int, float, str)
"""The types of defaults that values are held to."""
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def _fits(value: Any, default: Any) -> bool:
    """Whether a value may stand for a default. Lists may stand for numbers, null for all."""
    if value is None or isinstance(value, list) or type(default) not in _KINDS:
        return True
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _reads_as(text: str) -> Any:
    """What a text of the command line stands for."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
