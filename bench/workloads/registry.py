"""Finds a workload by its name. No torch.

The name is that of a model of the zoo, a paper's setting (``papers``), the id of a downloaded model
of the Hugging Face Hub, or the path of a pipeline folder. Settings may follow the name
(``workload_name``).
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.errors import BrokenModel, UnknownName, UserError, did_you_mean
from quantarena.bench.files import finish_replacing
from quantarena.bench.workloads import hub, papers, settings, workload_name
from quantarena.bench.workloads.inputs import arguments
from quantarena.bench.workloads.inputs.condition_images import (
    ConditionImages,
    Size,
    find_images,
    require_one_size,
)
from quantarena.bench.workloads.pipeline_class import require_drawable
from quantarena.bench.workloads.settings import Settings

ZOO = Path(__file__).parent / "zoo"
DATA = Path(__file__).parent / "data"
SETTINGS = settings.FILE
INDEX = "model_index.json"
_SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """A diffusers pipeline with all settings that decide its images.

    Attributes:
        name: the name in a cell: a name of the zoo or the papers, a hub id or an absolute path,
            followed by the given settings.
        title: one line for readers.
        path: the pipeline folder.
        steps: sampler steps.
        guidance: scale of classifier-free guidance; 1 turns it off.
        eta: share of fresh noise in DDIM.
        resolution: side of the images in pixels.
        conditions: ``none``, ``class`` or ``prompt``.
        prompts: evaluation conditions, in order; empty for ``none``.
        reference: real images: ``SET/SPLIT`` of the data folder, a features file, a folder, or "".
        licence: licence of weights and data.
        megabytes: size of the folder on disk.
        sampler: scheduler class of diffusers that replaces the pipeline's, or "".
        hub: id on the Hugging Face Hub, or "".
        outliers: strength of the outliers that are planted in the network; 0 plants none.
        lora: a LoRA that evaluation images are drawn with, or "". Methods calibrate on the network
            without it: whoever ships a model does not know what will be put on it.
        inputs: images that the pipeline starts from, follows, or paints in.
        call: further arguments of the pipeline's call, names and canonical JSON.
        sampler_options: of the sampler's configuration, likewise.
    """

    name: str
    title: str
    path: Path
    steps: int
    guidance: float
    eta: float
    resolution: int
    conditions: str
    prompts: tuple[str, ...]
    reference: str
    licence: str
    megabytes: float
    sampler: str = ""
    hub: str = ""
    outliers: float = 0.0
    lora: str = ""
    inputs: tuple[ConditionImages, ...] = ()
    call: arguments.Pairs = ()
    sampler_options: arguments.Pairs = ()

    @property
    def size(self) -> Size | None:
        """Width and height of the images in pixels; None for those of the pipeline."""
        given = arguments.values(self.call)
        if "width" in given:
            return int(given["width"]), int(given["height"])
        return (self.resolution, self.resolution) if self.resolution else None

    @property
    def noise_name(self) -> str:
        """The name from which the seeds of noise are made: that of the model.

        It does not depend on settings or on the spelling of the path, so images of one model with
        two settings are pairs.
        """
        return self.hub.rpartition("/")[2] or self.path.resolve().name

    @property
    def reference_path(self) -> Path:
        """File or folder of the real images, where ``reference`` is no set of the package."""
        local = self.path / self.reference
        return local if os.path.exists(local) else Path(self.reference).expanduser()


def names() -> tuple[str, ...]:
    """The names of the models of the zoo."""
    if not ZOO.is_dir():
        return ()
    folders = (f for f in ZOO.iterdir() if not f.name.startswith("."))
    return tuple(sorted(f.name for f in folders if (f / INDEX).is_file()))


def describe(name: str) -> WorkloadInfo:
    """A workload of the zoo.

    Raises:
        UnknownName: there is none of that name. The message suggests similar names.
    """
    known = names()
    if name not in known:
        raise UnknownName(
            f"unknown workload {name!r}: {did_you_mean(name, (*known, *papers.PAPERS))}"
        )
    return _read(ZOO / name, name, {})


def resolve(name_or_path: str) -> WorkloadInfo:
    """A workload of the zoo or of the papers, a downloaded hub model, or any pipeline folder.

    Raises:
        UnknownName: it is none of these. The message says what to download and where to put it.
        BrokenModel: the folder is no diffusers pipeline.
        UserError: a setting does not exist or is out of range.
    """
    base, given = workload_name.split(name_or_path)
    if base in names():
        return _read(ZOO / base, base, given) if given else describe(base)
    if base in papers.PAPERS:
        return _paper(base, given)
    if not base.strip():
        raise UserError("the workload's name is empty: give a name, a folder or an id of the Hub")
    folder = Path(base).expanduser()
    # These functions take names of any length; the methods of Path raise for very long ones.
    if not os.path.isdir(folder):
        finish_replacing(folder)
    if os.path.isdir(folder):
        return _read(folder, str(folder.resolve()), given)
    if os.path.isfile(folder):
        raise _no_folder(folder)
    if hub.is_id(base):
        return _read(hub.cached(base), base, given, hub_id=base)
    if "/" in base or os.path.exists(folder):
        raise UnknownName(f"workload {base!r} is no folder and no name of the zoo")
    return describe(base)


def _paper(name: str, given: dict[str, str]) -> WorkloadInfo:
    paper = papers.PAPERS[name]
    folder = Path(given["model"]) if "model" in given else hub.cached(paper.model, name)
    if not os.path.isdir(folder):
        raise UserError(f"workload {name}: model={folder} is no folder")
    info = _read(folder, name, given, hub_id=paper.model, base=paper)
    if info.conditions == "prompt" and not info.prompts:
        raise UserError(
            f"workload {name} draws from {paper.captions}: give their file with "
            "--set prompts=FILE (one a line, .csv, .tsv or .json)"
        )
    return info


def _no_folder(file: Path) -> UserError:
    if file.suffix.lower() not in _SINGLE:
        return BrokenModel(f"workload {file} is a file: a diffusers pipeline is a folder")
    return BrokenModel(
        f"{file} is a single-file checkpoint: make a pipeline folder of it with "
        "diffusers (Pipeline.from_single_file(FILE).save_pretrained(DIR)) and give DIR"
    )


def _read(
    folder: Path,
    name: str,
    given: dict[str, str],
    *,
    hub_id: str = "",
    base: papers.Paper | None = None,
) -> WorkloadInfo:
    if "model" in given and base is None:
        raise UserError(f"workload {name} is a model already: model=DIR is for papers' settings")
    _require_pipeline(folder)
    values = settings.read_settings(folder, Settings())
    if base is not None:
        values = dataclasses.replace(values, **base.settings())
    values = settings.apply(values, given, name)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    info = WorkloadInfo(
        name=workload_name.join(name, given),
        title=values.title or (hub_id or folder.name),
        path=folder,
        steps=values.steps,
        guidance=values.guidance,
        eta=values.eta,
        resolution=values.resolution,
        conditions=values.conditions,
        prompts=values.prompts,
        reference=values.reference,
        licence=values.licence,
        megabytes=size / 1e6,
        sampler=values.sampler,
        hub=hub_id,
        outliers=values.outliers,
        lora=values.lora,
        inputs=find_images(dict(values.folders), name),
        call=values.call,
        sampler_options=values.sampler_options,
    )
    require_one_size(info.inputs, info.size, name)
    return info


def _require_pipeline(folder: Path) -> None:
    if (folder / INDEX).is_file():
        require_drawable(folder)
        return
    hint = ""
    if (folder / "config.json").is_file():
        text = (folder / "config.json").read_text("utf-8", "replace")
        kind = re.search(r'"_class_name":\s*"(\w+)"', text)
        part = kind[1] if kind else "one component"
        hint = f"; it holds {part} alone, give the folder above it"
    elif single := next((f for f in sorted(folder.iterdir()) if f.suffix in _SINGLE), None):
        hint = f"; {single.name} looks like a single-file checkpoint, which has to be converted"
    raise BrokenModel(f"{folder} is no diffusers pipeline: it has no {INDEX}{hint}")
