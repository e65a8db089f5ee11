"""Downloading a pipeline from the Hugging Face Hub: the only module that uses the network."""

import re
from collections.abc import Iterable
from pathlib import Path

from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.workloads.hub import INDEX, WEIGHTS, cache_folder, is_id

TIMEOUT = 10.0
"""Seconds to wait for the Hub's first answer."""
_FOREIGN = (".msgpack", ".h5", ".onnx", ".onnx_data", ".ckpt", ".pb", ".xml", ".gguf", ".pt")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)\b")


def wanted(files: Iterable[str]) -> tuple[str, ...]:
    """The files of a repository that its pipeline needs: each weight once, in safetensors.

    Left out are checkpoints beside the component folders and weights of other frameworks, and,
    unless there is nothing else, variants in half precision.

    >>> wanted(["model_index.json", "v1.ckpt", "unet/d.safetensors", "unet/d.bin", "unet/c.json"])
    ('model_index.json', 'unet/c.json', 'unet/d.safetensors')
    """
    by_folder: dict[str, list[str]] = {}
    needed = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if name == "" or file.endswith(_FOREIGN) or "/" in folder:
            continue
        if not folder:
            needed += [file] if file in (INDEX, "workload.json", "README.md") else []
        elif name.endswith(WEIGHTS) or name.endswith(".index.json"):
            by_folder.setdefault(folder, []).append(file)
        else:
            needed.append(file)
    for weights in by_folder.values():
        plain = [file for file in weights if not _VARIANT.search(file)] or weights
        safe = [file for file in plain if ".safetensors" in file]
        needed += safe or plain
    return tuple(sorted(needed))


def fetch(hub_id: str, folder: Path | None = None) -> Path:
    """Download a pipeline into the cache of ``huggingface_hub``, or into a folder.

    Raises:
        UserError: the Hub cannot be reached, or has no such model.
    """
    if not is_id(hub_id):
        raise UserError(f"{hub_id!r} is no id of a model on the Hugging Face Hub, as owner/name is")
    from huggingface_hub import HfApi, errors, snapshot_download

    where = folder or cache_folder()
    try:
        info = HfApi().model_info(hub_id, timeout=TIMEOUT)
        files = wanted(sibling.rfilename for sibling in info.siblings or ())
        if INDEX not in files:
            raise BrokenModel(f"{hub_id} is no diffusers pipeline: it has no {INDEX}")
        found = snapshot_download(
            hub_id, revision=info.sha, local_dir=folder, allow_patterns=list(files)
        )
        if folder is None:
            _name_main(Path(found))
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{hub_id} asks you to accept its licence: do so on https://huggingface.co/{hub_id}, "
            "then log in with: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face Hub has no model {hub_id}, or it is private: see the spelling, or "
            "log in with: hf auth login"
        ) from None
    except (
        Exception
    ) as error:  # sockets, proxies, offline mode and a full disk raise errors of their own
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"cannot download {hub_id} to {where} ({type(error).__name__}: {first[:120]}): try "
            f"again with a network, or copy the folder of https://huggingface.co/{hub_id} to this "
            "machine and give its path"
        ) from None
    return Path(found)


def _name_main(folder: Path) -> None:
    """Write the reference ``main`` of a download, by which other tools find its revision."""
    if folder.parent.name != "snapshots":
        return
    reference = folder.parent.parent / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(folder.name)
