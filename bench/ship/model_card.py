"""The README.md of an exported model: front matter for model hubs, then facts for readers.

Where a run has measured a network of the very same codes, its numbers are in both.
"""

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

_TASKS = {"prompt": "text-to-image"}
_TASK = "unconditional-image-generation"
"""What hubs call the task of pipelines that draw from noise or class numbers."""


def card(document: Mapping[str, Any], info: WorkloadInfo, pipeline: str) -> str:
    """The model card: Markdown with YAML front matter.

    Args:
        document: description of the packed network, and the size of its file.
        info: the workload that was quantized.
        pipeline: name of the pipeline's class.
    """
    meta, sizes = document["meta"], document["bytes"]
    observed = meta.get("observed", {})
    bits, base = meta.get("bits", ""), meta.get("base_model", info.title)
    tags = ["diffusers", "quantarena", "quantized", meta.get("method", ""), bits]
    tags += [pipeline, f"diffusers:{pipeline}"]
    task = _TASKS.get(info.conditions, _TASK)
    scores = meta.get("scores", {})
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
        *_base(str(base)),
        f"license: {_licence(info.licence)}",
        "library_name: diffusers",
        f"pipeline_tag: {task}",
        f"tags: {json.dumps([tag for tag in tags if tag])}",
        *_index(f"{base}, {rows['method']} at {bits}", task, str(base), scores),
        "---",
        "",
        f"# {base}, {rows['method']} at {bits}",
        "",
        "The denoiser of this pipeline is quantized and packed: its weights take the bits below on",
        f"disk and in memory, and {_HOW[meta.get('backend') == 'weight-only']} All other parts are",
        "the base model's.",
        "",
        "```python",
        "import quantarena  # lets diffusers read packed weights: pip install quantarena",
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("this folder")',
        "```",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value),
        "",
    ]
    lines += _measured(scores)
    if "command" in meta:
        lines += ["Made by", "", "```sh", str(meta["command"]), "```", ""]
    return "\n".join(lines)


def _measured(scores: Mapping[str, Any]) -> list[str]:
    """The numbers of a run, with their intervals; nothing where no run measured these codes."""
    if not scores:
        return []
    lines = [
        "## Measured",
        "",
        f"By quantarena on a network of the same codes (row `{scores['row']}`). Fidelity is",
        "closeness to full precision's images of the same seeds, quality closeness to real images.",
        "",
        "| board | metric | value | 95 % interval | images | against |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(scores["measurements"], key=lambda one: (one["board"], one["name"])):
        found = one["low"] is not None and one["high"] is not None
        interval = f"{one['low']:.4g} to {one['high']:.4g}" if found else "-"
        value = f"{one['value']:.4g} {one['unit']}".strip()
        texts = (one["board"], one["name"], value, interval, one["n"], one["reference"] or "-")
        lines.append("| " + " | ".join(map(_cell, texts)) + " |")
    if latency := scores.get("latency"):
        lines += [
            "",
            f"One call of the denoiser, batch {latency['batch']}, on {latency['threads']} thread(s)"
            f" of {_cell(scores['device']) or 'the machine'}: {latency['step_ms']:.3g} ms. That is",
            f"{latency['ratio']:.3g} times as fast as full precision at its fastest setting there,",
            f"{_cell(latency['fp_setting'])} (95 % interval {latency['ratio_low']:.3g} to "
            f"{latency['ratio_high']:.3g}, {latency['rounds']} paired rounds).",
        ]
    return [*lines, ""]


def _base(name: str) -> list[str]:
    """The lines that name the base model, where its name can be that of a repository."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return []
    return [f"base_model: {json.dumps(name)}", "base_model_relation: quantized"]


def _index(name: str, task: str, base: str, scores: Mapping[str, Any]) -> list[str]:
    """The measurements as model hubs index them, one line of JSON, which is YAML too."""
    measured = scores.get("measurements", ())
    if not measured:
        return []
    metrics = [
        {"type": one["name"], "value": one["value"], "name": f"{one['name']} ({one['board']})"}
        for one in measured
    ]
    result = {
        "task": {"type": task},
        "dataset": {"type": "quantarena", "name": f"quantarena, images of {base}"},
        "metrics": metrics,
    }
    return [f"model-index: {json.dumps([{'name': name, 'results': [result]}])}"]


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
