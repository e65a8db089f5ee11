"""The README.md of an exported model: front matter for model hubs, then facts for readers."""

import json
import re
from collections.abc import Mapping
from typing import Any

from quantarena.bench.workloads.registry import WorkloadInfo

_LICENCES = ("apache-2.0", "mit", "openrail++", "openrail", "cc-by-4.0", "cc0-1.0", "bsd-3-clause")

_HOW = {
    False: "it runs on integer kernels.",
    True: "each is made a float weight again when its layer runs: this saves memory, not time.",
}
"""How the network runs, by whether weights alone are quantized."""


def card(document: Mapping[str, Any], info: WorkloadInfo, pipeline: str) -> str:
    """The model card: Markdown with YAML front matter.

    Args:
        document: content of ``packed.json``.
        info: the workload that was quantized.
        pipeline: name of the pipeline's class.
    """
    meta, sizes = document["meta"], document["bytes"]
    observed = meta.get("observed", {})
    bits, base = meta.get("bits", ""), meta.get("base_model", info.title)
    tags = ["diffusers", "quantarena", "quantized", meta.get("method", ""), bits, pipeline]
    rows = {
        "method": meta.get("title") or meta.get("method"),
        "paper": meta.get("paper"),
        "bits asked": bits,
        "bits observed, weights": _number(observed.get("weight_bits")),
        "bits observed, activations": _number(observed.get("act_bits")),
        "share of multiplications": _shares(observed.get("coverage", {})),
        "policy, variant, seed": ", ".join(
            str(meta[name]) for name in ("policy", "variant", "seed") if name in meta
        ),
        "options": ", ".join(f"{n}={v}" for n, v in meta.get("options", {}).items()),
        "packed file": f"{sizes['file'] / 1e6:.2f} MB",
        "same network in fp32": _megabytes(observed.get("fp_bytes")),
        "calibration points": meta.get("calibration", {}).get("points"),
        "calibration sha256": meta.get("calibration", {}).get("sha256"),
        "packed against fake quantization": meta.get("parity"),
        "licence of the base model": info.licence,
    }
    lines = [
        "---",
        f"base_model: {json.dumps(str(base))}",
        "base_model_relation: quantized",
        f"license: {_licence(info.licence)}",
        "library_name: diffusers",
        f"tags: {json.dumps([tag for tag in tags if tag])}",
        "---",
        "",
        f"# {base}, {rows['method']} at {bits}",
        "",
        "The denoiser of this pipeline is quantized and packed: its weights take the bits below on",
        f"disk and in memory, and {_HOW[meta.get('backend') == 'weight-only']} All other parts are",
        "the base model's.",
        "",
        "```python",
        "from quantarena import load_pipeline",
        "",
        'pipe = load_pipeline("this folder")',
        "```",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value),
        "",
    ]
    if "command" in meta:
        lines += ["Made by", "", "```sh", str(meta["command"]), "```", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3g} on average"


def _megabytes(value: Any) -> str:
    return "" if value is None else f"{value / 1e6:.2f} MB"


def _shares(coverage: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in coverage.items())


def _licence(text: str) -> str:
    """The licence's identifier on model hubs, or ``other``."""
    lowered = text.lower()
    found = [n for n in _LICENCES if re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", lowered)]
    return found[0] if found else "other"
