"""Workload names that include settings: ``NAME?guidance=7.5&steps=50``. No torch.

``--set guidance=7.5`` adds a setting to the name. Settings are part of the name, and therefore of
every key that is made from it.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from quantarena.bench.adapters.request import LoraRequest
from quantarena.bench.errors import UserError
from quantarena.bench.workloads.conditions import class_range
from quantarena.bench.workloads.inputs import arguments
from quantarena.bench.workloads.settings import KEYS, LORA, PATHS, require_known


def split(name: str) -> tuple[str, dict[str, str]]:
    """Split a name into the workload and its settings, with absolute paths.

    >>> split("sd-v1-4?guidance=7.5&steps=50")
    ('sd-v1-4', {'guidance': '7.5', 'steps': '50'})

    Raises:
        UserError: a setting does not exist.
    """
    base, mark, text = name.rpartition("?")
    if not mark or os.path.exists(name):
        return name, {}
    pairs = parse_qsl(text, keep_blank_values=True)
    if not pairs or not base:
        raise UserError(f"workload {name!r}: settings read NAME?guidance=7.5&steps=50")
    if double := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise UserError(f"workload {name!r}: {double[0]} is given twice: keep one")
    return base, _told({key: _canonical(key, value) for key, value in pairs})


def join(name: str, given: Mapping[str, str]) -> str:
    """The inverse of ``split``. Equal settings give equal names."""
    if not given:
        return name
    return f"{name}?{urlencode(sorted(given.items()), safe='/@')}"


def with_options(name: str, options: tuple[str, ...]) -> str:
    """Add the values of ``--set KEY=VALUE`` to a name, whose own settings they replace.

    Raises:
        UserError: there is no such key, no value, or a key stands twice.
    """
    base, given = split(name)
    added: set[str] = set()
    for option in options:
        key, mark, value = option.partition("=")
        if not mark or not value.strip():
            raise UserError(f"--set {option}: it reads KEY=VALUE, such as guidance=7.5")
        if key.strip() in added:
            raise UserError(f"--set {key.strip()} is given twice: keep one")
        added.add(key.strip())
        given[key.strip()] = _canonical(key.strip(), value.strip())
    return join(base, _told(given))


def shown(name: str) -> str:
    """A workload's name as shown in commands: of paths, the last part only."""
    base, given = split(name)
    short = {k: Path(v).name if k in PATHS else v for k, v in given.items()}
    if LORA in given:
        short[LORA] = LoraRequest.read(given[LORA]).text(short=True)
    folder = Path(base).expanduser()
    return join(folder.resolve().name if os.path.exists(folder) else base, short)


def _told(given: Mapping[str, str]) -> dict[str, str]:
    """The settings without ``outliers=0``, which is the model as it is and has its name."""
    return {k: v for k, v in given.items() if (k, v) not in (("outliers", "0"), ("outliers", "-0"))}


def _canonical(key: str, value: str) -> str:
    """The canonical text of a value: an absolute path, ``7.5`` for ``7.50``; else unchanged."""
    require_known(key, KEYS)
    if not value:
        raise UserError(f"setting {key} is empty: give a value, such as {key}=..., or leave it out")
    if arguments.is_argument(key):
        return arguments.canonical(key, value)
    if key in ("guidance", "eta", "steps", "resolution", "outliers"):
        try:
            short = f"{float(value):g}"
            return short if float(short) == float(value) else value
        except ValueError:
            return value
    if key == LORA:
        return LoraRequest.read(value).text()
    if key not in PATHS or (key == "classes" and class_range(value)):
        return value
    path = Path(value).expanduser()
    # A reference may be the name of a set in the package instead of a path.
    return str(path.resolve()) if key != "reference" or os.path.exists(path) else value
