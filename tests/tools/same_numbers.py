"""Shows that a change of the code moves no number: packed codes, images and scores stay.

    python tests/tools/same_numbers.py record before.json     # in a checkout of the old code
    python tests/tools/same_numbers.py record after.json      # in a checkout of the new code
    python tests/tools/same_numbers.py compare before.json after.json

``record`` runs preset ``smoke`` and one cell of every built-in method on ``emoji-t2i``, exports
the packed network of each cell that packs, and writes one SHA-256 for each picture, each array of
scores and each packed tensor. Both records have to be made on one machine: another processor adds
floats in another order. It takes about ten minutes on one core. Latency is not compared.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

BUDGET = {"images": 16, "steps": 10, "iterations": 20}
EXPORT = {"samples": 64, "calibration-images": 8, "steps": 10, "iterations": 20}
WORKLOAD = "emoji-t2i"
WEIGHTS_ALONE = {"tuneqdm": "w4a16"}
ROW_FIELDS = ("status", "reason", "measurements", "observed", "parity", "backend", "warnings")


def command(*words: object) -> str:
    """Runs the command line of the quantarena that this interpreter imports; returns its output."""
    code = "from quantarena.bench.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}")
    return done.stdout


def digest(data: bytes) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def of_row(row: dict, results: Path) -> dict:
    """What a row says, its pictures and its arrays of scores, as hashes."""
    images = results / row.get("artefacts", {}).get("images", "none")
    scores = results / row.get("artefacts", {}).get("scores", "none")
    arrays = {}
    if scores.is_file():
        with np.load(scores) as file:
            arrays = {name: digest(file[name].tobytes()) for name in file.files}
    return {
        **{name: row.get(name) for name in ROW_FIELDS},
        "images": {path.name: digest(path.read_bytes()) for path in sorted(images.glob("*.png"))},
        "scores": arrays,
    }


def of_export(folder: Path) -> dict[str, str]:
    """Every packed tensor of an exported pipeline, as hashes."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in sorted(file.keys()):
                found[f"{path.relative_to(folder)}:{name}"] = digest(
                    file.get_tensor(name).tobytes()
                )
    return found


def label(cell: dict) -> str:
    """Name of a cell that no change of keys moves."""
    names = ("method", "bits", "variant", "policy", "seed")
    return "/".join(str(cell[name]) for name in names)


def record(output: Path) -> None:
    """Runs everything and writes the record."""
    methods = [line["name"] for line in json.loads(command("ls", "methods", "--json"))]
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        options = [word for name, value in BUDGET.items() for word in (f"--{name}", value)]
        common = ("--results", work, "--executor", "local", "--json", "--quiet")
        for bits in ("w4a8", "w4a16"):
            own = [name for name in methods if WEIGHTS_ALONE.get(name, "w4a8") == bits]
            command("run", "smoke", "--method", ",".join(own), "--bits", bits, *options, *common)
        command("run", "smoke", *options, *common)
        rows = [json.loads(path.read_text()) for path in sorted(work.glob("*/rows/*.json"))]
        for row, results in zip(rows, sorted(work.glob("*/rows/*.json")), strict=True):
            found[label(row["cell"])] = of_row(row, results.parent.parent)
        for method in (name for name in methods if name not in ("fp", *WEIGHTS_ALONE)):
            print(f"export {method}", file=sys.stderr)
            spent = [word for name, value in EXPORT.items() for word in (f"--{name}", value)]
            command(
                "quantize",
                WORKLOAD,
                "--method",
                method,
                "--bits",
                "w4a8",
                *spent,
                "--cache",
                work / ".cache",
                "-o",
                work / f"export-{method}",
                "--quiet",
                "--json",
            )
            found[f"packed {method}"] = of_export(work / f"export-{method}")
    output.write_text(json.dumps(found, indent=1, sort_keys=True))
    print(f"{output}: {len(found)} entries")


def differences(before: object, after: object, where: str = "") -> list[str]:
    """One line for each place at which two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in differences(before.get(key), after.get(key), f"{where} {key}".strip())
        ]
    return [] if before == after else [f"{where}: {str(before)[:80]} -> {str(after)[:80]}"]


def compare(before: Path, after: Path) -> int:
    """Prints what differs; exit code 1 where anything does."""
    lines = differences(json.loads(before.read_text()), json.loads(after.read_text()))
    entries = len(json.loads(before.read_text()))
    print("\n".join(lines[:50]) or f"identical: {entries} entries")
    return 1 if lines else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record").add_argument("output", type=Path)
    two = verbs.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.verb == "compare":
        return compare(given.before, given.after)
    record(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
