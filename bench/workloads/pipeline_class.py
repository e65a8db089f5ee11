"""Reads the signature of a pipeline's class from diffusers' source, without importing it. No torch.

So a plan refuses what no workload can give, before anything runs.
"""

import ast
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads.inputs.arguments import plain_default
from quantarena.bench.workloads.inputs.kinds import ARGUMENTS, ImageNeeds, image_needs
from quantarena.methods.core.json_files import read_object

PIPELINES = "pipelines/**/*pipeline*.py"
MODULAR = "modular_pipelines/**/modular_pipeline*.py"
SCHEDULERS = "schedulers/scheduling_*.py"
"""Where diffusers' classes are defined."""
OFFERED = ARGUMENTS | {"prompt", "class_labels", "batch_size", "num_inference_steps", "generator"}
"""Arguments of a pipeline that a workload can give."""
_GIVEN = OFFERED | {"height", "width", "guidance_scale", "eta", "output_type"}
"""Arguments that a call gets with or without a default."""
_KINDS = (
    ({"video", "frames", "control_video"}, "video to video"),
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
    ({"frame_size"}, "something other than images"),
)
"""Arguments by which a kind of pipeline is known, and its name."""


@dataclass(frozen=True, slots=True)
class CallSignature:
    """The arguments of a pipeline's call.

    Attributes:
        names: all arguments by name.
        required: those without a default.
        defaults: those that are numbers, texts or truth values, by name.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def require_drawable(folder: Path) -> None:
    """Refuse a pipeline that needs what no workload can give, or draws no images and no videos.

    A class that is not part of diffusers is not judged: its call says later what it lacks.

    Raises:
        BrokenModel: one line that names the kind of pipeline, or what is wrong with its index.
    """
    name = class_name(folder)
    kind = purpose(name) if name else None
    if kind:
        raise BrokenModel(
            f"{folder} is a pipeline for {kind} ({name}): a workload draws images or videos from "
            "noise, prompts, classes and images of a folder, and nothing else"
        )


@functools.cache
def purpose(name: str) -> str | None:
    """What a class is for, if a workload cannot draw with it; else None.

    The signature of its call says most. The rest stands in its source: the class of its output,
    and the conditions under which it raises.
    """
    if class_source(name, MODULAR) is not None:
        return "diffusers' modular blocks"
    own = class_source(name, PIPELINES)
    if own is None:
        return None
    call = method_source(name, "__call__", PIPELINES)
    if call is None:
        return "no call of its own"
    if "OnnxRuntimeModel" in {n.id for n in ast.walk(own) if isinstance(n, ast.Name)}:
        return "ONNX networks"
    for base in own.bases:
        if isinstance(base, ast.Name) and base.id.startswith("Onnx"):
            return "ONNX networks"
    signature = _signature(call.args)
    if kind := kind_of(signature):
        return kind
    if not all(map(_holds_images, _outputs(call))):
        return "something other than images"
    checks = method_source(name, "check_inputs", PIPELINES)
    missing = _demanded(_optional(call.args), call.body + (checks.body if checks else []))
    return f"a call with {missing!r}" if missing else None


def kind_of(signature: CallSignature) -> str | None:
    """What a pipeline is for, if a workload cannot draw with it; else None."""
    names = set(signature.names)
    for marks, kind in _KINDS:
        if marks & names:
            return kind
    others = {"height", "num_frames", *ARGUMENTS}
    if "prompt" in names and not others & names:  # a prior, a language model, shapes
        return "something other than images"
    missing = [name for name in signature.required if name not in OFFERED]
    return f"a call with {missing[0]!r}" if missing else None


@functools.cache
def needs_of(name: str) -> ImageNeeds | None:
    """The condition images of a class of diffusers; None where there is no such class.

    What its code does to an ``image`` that is not given tells whether it needs one.
    """
    call = method_source(name, "__call__", PIPELINES)
    if call is None:
        return None
    signature = _signature(call.args)
    uses = "image" in signature.names and needs(call.body, "image")
    return image_needs(signature.names, signature.required, uses_image=uses)


def _outputs(call: ast.FunctionDef) -> list[str]:
    """The classes that a call makes in its return statements."""
    values = (n.value for n in ast.walk(call) if isinstance(n, ast.Return))
    makers = (value.func for value in values if isinstance(value, ast.Call))
    return [maker.id for maker in makers if isinstance(maker, ast.Name)]


def _holds_images(output: str) -> bool:
    """Whether an output class has images or frames; one that is not found is believed to."""
    found = class_source(output, PIPELINES)
    fields = (
        [item.target for item in found.body if isinstance(item, ast.AnnAssign)] if found else []
    )
    names = {target.id for target in fields if isinstance(target, ast.Name)}
    return not names or bool(names & {"images", "frames"})


def needs(body: Sequence[ast.stmt], name: str) -> bool:
    """Whether code uses a name as if it were given, outside of what asks whether it is None.

    The code is followed until it gives the name another value. A use is an attribute, an item, or
    the name as first argument of a ``preprocess``, the method of diffusers' image processors.
    """
    return bool(_use(list(body), name))


def _use(nodes: Sequence[ast.AST], name: str) -> bool | None:
    """True for a use, False where the name gets another value first, None for neither."""
    for node in nodes:
        found: bool | None = None
        if isinstance(node, ast.If | ast.IfExp) and (asked := _asks(node.test, name)):
            rest = node.orelse if isinstance(node.orelse, list) else [node.orelse]
            # What follows a question about more than None is reached without the name as well.
            if asked == "and":
                found = True if _use(rest, name) else None
        elif isinstance(node, ast.If):
            branches = [_use(block, name) for block in ([node.test], node.body, node.orelse)]
            if branches[1:] == [False, False]:
                return branches[0] or False
            found = any(branches)
        elif isinstance(node, ast.Assert) and _asks(node.test, name):
            return False
        elif isinstance(node, ast.Assign):
            found = _use([node.value], name)
            if found is None and name in {t.id for t in node.targets if isinstance(t, ast.Name)}:
                return False
        elif _is_use(node, name):
            return True
        else:
            found = _use(list(ast.iter_child_nodes(node)), name)
        if found:
            return True
    return None


def _is_use(node: ast.AST, name: str) -> bool:
    value: ast.AST | None = None
    if isinstance(node, ast.Attribute | ast.Subscript):
        value = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        value = node.args[0] if node.func.attr == "preprocess" else None
    return isinstance(value, ast.Name) and value.id == name


def _asks(test: ast.expr, name: str) -> str:
    """Whether a test is about a name that is None: ``only`` that, that ``and`` more, or ""."""
    if isinstance(test, ast.BoolOp):
        return "and" if any(_asks(value, name) for value in test.values) else ""
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is | ast.IsNot):
        test = test.left
    return "only" if isinstance(test, ast.Name) and test.id == name else ""


def _demanded(optional: set[str], body: Sequence[ast.stmt]) -> str | None:
    """An argument without which a call raises, and that no workload can give."""
    for item in body:
        if not isinstance(item, ast.If) or not isinstance(item.body[0], ast.Raise):
            continue
        test: Any = item.test
        together = isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And)
        asked = [
            part.left.id if _is_none(part) else "" for part in (test.values if together else [test])
        ]
        if optional.issuperset(asked) and not _GIVEN & set(asked):
            return str(asked[0])
    return None


def _optional(given: ast.arguments) -> set[str]:
    """The arguments whose default is None."""
    return {n for n, v in _defaults(given) if isinstance(v, ast.Constant) and v.value is None}


def _defaults(given: ast.arguments) -> list[tuple[str, ast.expr]]:
    """The arguments that have a default, and what stands there."""
    positional = [*given.posonlyargs, *given.args]
    pairs = [*zip(reversed(positional), reversed(given.defaults), strict=False)]
    pairs += [
        (one, value)
        for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        if value
    ]
    return [(argument.arg, value) for argument, value in pairs]


def _is_none(test: Any) -> bool:
    """Whether a test is ``NAME is None``."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name)
        and isinstance(test.ops[0], ast.Is)
        and isinstance(test.comparators[0], ast.Constant)
        and test.comparators[0].value is None
    )


def class_name(folder: Path) -> str | None:
    """The class of a pipeline folder; None if it has no index.

    Raises:
        BrokenModel: the index cannot be read, or it names no class.
    """
    file = folder / "model_index.json"
    try:
        name = read_object(file).get("_class_name")
    except FileNotFoundError:
        return None
    if not isinstance(name, str) or not name.isidentifier():
        raise BrokenModel(f"{file} names no class of a pipeline: _class_name is {name!a:.60}")
    return name


@functools.cache
def call_signature(name: str) -> CallSignature | None:
    """The signature of ``__call__`` of a pipeline class of diffusers; None if there is none."""
    return method_signature(name, "__call__", PIPELINES)


def method_signature(name: str, method: str, places: str) -> CallSignature | None:
    """The signature of a method of a class in diffusers' files; None if there is none."""
    found = method_source(name, method, places)
    return None if found is None else _signature(found.args)


def method_source(name: str, method: str, places: str) -> ast.FunctionDef | None:
    """The syntax tree of a method, its own or an inherited one; None if there is none."""
    found = class_source(name, places)
    if found is None:
        return None
    for item in found.body:
        if isinstance(item, ast.FunctionDef) and item.name == method:
            return item
    for base in found.bases:
        if isinstance(base, ast.Name) and (inherited := method_source(base.id, method, places)):
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
    defaults = {
        name: default
        for name, node in _defaults(given)
        if (default := plain_default(node)) is not None
    }
    names = (*positional, *(a.arg for a in given.kwonlyargs))
    return CallSignature(names, tuple(required), defaults)


def class_source(name: str, places: str) -> ast.ClassDef | None:
    """The syntax tree of a class in diffusers' files; None if there is none.

    Args:
        name: of the class.
        places: pattern of the files, below the folder of diffusers.
    """
    found = _file_and_class(name, places)
    return found[1] if found else None


def missing_library(name: str, places: str) -> str | None:
    """A library that the file of a class imports at its start and that is not installed."""
    found = _file_and_class(name, places)
    for item in found[0].body if found else ():
        names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else []
        if isinstance(item, ast.ImportFrom) and item.module and not item.level:
            names = [item.module]
        for library in (name.partition(".")[0] for name in names):
            if importlib.util.find_spec(library) is None:
                return library
    return None


@functools.cache
def _file_and_class(name: str, places: str) -> tuple[ast.Module, ast.ClassDef] | None:
    """The syntax trees of a class in diffusers' files and of its file; None if there is none."""
    for file in _sources(places):
        text = file.read_text(encoding="utf-8")
        if f"class {name}(" not in text and f"class {name}:" not in text:
            continue
        module = ast.parse(text)
        for item in module.body:
            if isinstance(item, ast.ClassDef) and item.name == name:
                return module, item
    return None


@functools.cache
def _sources(places: str) -> tuple[Path, ...]:
    found = importlib.util.find_spec("diffusers")
    folders = found.submodule_search_locations if found else None
    return tuple(sorted(Path(next(iter(folders))).glob(places))) if folders else ()
