"""The row of a run whose network has the very codes of an export, for its model card."""

from pathlib import Path
from typing import Any

from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.store import Store

STAGE = "quantize"


def scores_of(results: Path, key: str) -> dict[str, Any]:
    """What runs have measured of a quantized network.

    Args:
        results: the folder with the folders of runs.
        key: key of the stage that quantized; equal keys mean equal codes.

    Returns:
        JSON types: ``measurements`` and ``latency`` as a row has them, ``device``, and the ``row``
        that they are from. Empty where no run measured this network. Of several rows that with the
        most images counts, then the one whose key comes first.
    """
    found = [
        row
        for folder in sorted(results.glob("*/rows"))
        for row in Store(folder.parent, foreign=True).rows()
        if row.status is Status.OK and row.stage_keys.get(STAGE) == key
        if not row.workload.get("lora")  # its images are not those of the export alone
    ]
    if not found:
        return {}
    best = min(found, key=lambda row: (-_images(row), row.key))
    latency = best.latency
    return {
        "row": best.key,
        "measurements": [_plain(one) for one in best.measurements if one.value is not None],
        "latency": None
        if latency is None
        else {
            "ratio": latency.ratio,
            "ratio_low": latency.ratio_low,
            "ratio_high": latency.ratio_high,
            "step_ms": latency.step_ms,
            "fp_setting": latency.fp_setting,
            "batch": latency.batch,
            "threads": latency.threads,
            "rounds": latency.rounds,
        },
        "device": "" if best.device is None else best.device.name,
    }


def _images(row: Row) -> int:
    return max((one.n for one in row.measurements), default=0)


def _plain(one: Measurement) -> dict[str, Any]:
    names = ("name", "value", "low", "high", "n", "unit", "board", "reference")
    return {name: getattr(one, name) for name in names}
