"""Rows as one flat table with a fixed column order, for CSV, Parquet and spreadsheets."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from quantarena.bench.files import plain_errors, write_atomic
from quantarena.bench.schema import Row
from quantarena.bench.spec import canonical_json

CELL = ("workload", "method", "bits", "seed", "variant", "policy")
BUDGET = (
    "images",
    "batch",
    "steps",
    "calibration_images",
    "calibration_samples",
    "iterations",
    "latency_rounds",
)
OBSERVED = ("weight_bits", "act_bits", "packed_bytes", "fp_bytes", "layers")
LATENCY = (
    "step_ms",
    "step_iqr_ms",
    "fp_step_ms",
    "fp_setting",
    "ratio",
    "ratio_low",
    "ratio_high",
    "image_ms",
    "batch",
    "rounds",
    "threads",
    "backend",
    "clock",
    "peak_bytes",
)
PARITY = ("max_rel", "worst_layer", "layers", "limit")
JSON = (
    "calibration",
    "method",
    "workload",
    "machine",
    "seconds",
    "stage_keys",
    "artefacts",
    "warnings",
)
TEXT = {
    *CELL,
    "key",
    "status",
    "reason",
    "backend",
    "started",
    "finished",
    "observed_coverage",
    "latency_fp_setting",
    "latency_backend",
    "latency_clock",
    "parity_worst_layer",
    *(f"{name}_json" for name in JSON),
} - {"seed"}
FLOATS = (
    "observed_weight_bits",
    "observed_act_bits",
    "latency_step_ms",
    "latency_step_iqr_ms",
    "latency_fp_step_ms",
    "latency_ratio",
    "latency_ratio_low",
    "latency_ratio_high",
    "latency_image_ms",
    "parity_max_rel",
    "parity_limit",
    "seconds_total",
)
FIXED_COLUMNS: tuple[str, ...] = (
    "key",
    *CELL,
    "status",
    "reason",
    "backend",
    *(f"observed_{name}" for name in OBSERVED),
    "observed_coverage",
    *(f"latency_{name}" for name in LATENCY),
    *(f"parity_{name}" for name in PARITY),
    "peak_bytes",
    "seconds_total",
    "started",
    "finished",
    "attempt",
    *(f"budget_{name}" for name in BUDGET),
    *(f"{name}_json" for name in JSON),
)


def flat_row(row: Row) -> dict[str, object]:
    """One row as scalars; what is not a scalar becomes canonical JSON."""
    flat: dict[str, object] = {"key": row.key}
    flat |= {name: getattr(row.cell, name) for name in CELL}
    flat |= {"status": row.status.value, "reason": row.reason, "backend": row.backend}
    seen = row.observed
    flat |= {f"observed_{name}": getattr(seen, name) if seen else None for name in OBSERVED}
    flat["observed_coverage"] = canonical_json(seen.coverage) if seen else None
    flat |= {f"latency_{n}": getattr(row.latency, n) if row.latency else None for n in LATENCY}
    flat |= {f"parity_{n}": getattr(row.parity, n) if row.parity else None for n in PARITY}
    flat |= {"peak_bytes": row.peak_bytes, "seconds_total": sum(row.seconds.values())}
    flat |= {"started": row.started, "finished": row.finished, "attempt": row.attempt}
    flat |= {f"budget_{name}": getattr(row.cell.budget, name) for name in BUDGET}
    flat |= {f"{name}_json": canonical_json(getattr(row, name)) for name in JSON}
    for figure in row.measurements:
        flat[figure.name] = figure.value
        flat[f"{figure.name}.low"] = figure.low
        flat[f"{figure.name}.high"] = figure.high
        flat[f"{figure.name}.n"] = figure.n
    flat["schema_version"] = row.schema_version
    return flat


def rows_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """All rows: fixed columns first, then the measurements by name, then the schema version."""
    names = sorted({figure.name for row in rows for figure in row.measurements})
    measured = [name + end for name in names for end in ("", ".low", ".high", ".n")]
    columns = [*FIXED_COLUMNS, *measured, "schema_version"]
    frame = pd.DataFrame([flat_row(row) for row in rows], columns=columns, dtype=object)
    # One type a column whatever the rows hold: an all-empty column stays what it is.
    kinds = {name: "string" if name in TEXT else "Int64" for name in columns}
    kinds |= {name: "Float64" for name in [*FLOATS, *measured]}
    return frame.astype(kinds)


def export_tables(rows: Sequence[Row], folder: Path) -> tuple[Path, Path]:
    """Write ``rows.csv`` and ``rows.parquet``, each whole or not at all."""
    frame = rows_frame(rows)
    csv, parquet = folder / "rows.csv", folder / "rows.parquet"
    write_atomic(csv, frame.to_csv(index=False, lineterminator="\n"))
    fresh = folder / f".rows.{os.getpid()}.parquet"
    with plain_errors("write", parquet):
        try:
            frame.to_parquet(fresh, index=False)
            os.replace(fresh, parquet)
        finally:
            fresh.unlink(missing_ok=True)
    return csv, parquet
