"""The result row: one JSON document a cell. Every key is described here. No torch."""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from quantarena.bench.spec import Cell

SCHEMA_VERSION = 1


class Status(StrEnum):
    """How a cell ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    TIMEOUT = "timeout"
    OOM = "oom"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with its interval and its origin.

    Attributes:
        name: metric with implementation and extractor, such as ``kid/effnet-lite0``.
        value: the number, or None when it was not computed (``reason`` says why).
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: images (or rounds) behind the number.
        unit: such as ``dB``; empty for a plain number.
        higher_is_better: direction of quality.
        board: ``fidelity`` (to full precision, same seed), ``quality`` (to real images or to the
            text), or ``floor`` (what differences mean nothing; in full precision's row).
        impl: library and version that computed it.
        extractor_sha256: weights of the feature network, if any.
        reference: what it was compared with (``fp`` or a set's name and hash).
        reason: why the value is None.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = ""
    higher_is_better: bool = False
    board: str = "fidelity"
    impl: str = ""
    extractor_sha256: str | None = None
    reference: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What the packed tensors and the live graph hold, never what a name promises.

    Attributes:
        weight_bits: mean bits a weight of the denoiser, full-precision layers included.
        act_bits: mean activation bits, weighted by MACs.
        coverage: share of the denoiser's MACs at each width, such as ``{"w4a8": 0.97}``.
        packed_bytes: bytes of the denoiser's parameters as packed.
        fp_bytes: bytes of the same parameters at fp32.
        layers: quantized layers.
        code_bits: mean bits of a weight code over the layers; 32 for weights in floating point.
        bops: bit operations of one network call on one image: MACs times the bits of both factors.
        fp_bops: of full precision, 32 bits each.
        branch_macs: MACs of floating-point branches beside quantized layers.
        attention: quantized attention products.
    """

    weight_bits: float
    act_bits: float
    coverage: dict[str, float]
    packed_bytes: int
    fp_bytes: int
    layers: int
    code_bits: float = 0.0
    bops: int = 0
    fp_bops: int = 0
    branch_macs: int = 0
    attention: int = 0


@dataclass(frozen=True, slots=True)
class Parity:
    """Packed against fake quantization on recorded inputs, layer by layer.

    Attributes:
        max_rel: largest max-abs difference over max-abs output of any layer.
        worst_layer: where it was.
        layers: layers compared.
        limit: the gate that ``max_rel`` had to pass.
    """

    max_rel: float
    worst_layer: str
    layers: int
    limit: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one denoiser step and of one image, timed alone, interleaved with full precision.

    Attributes:
        step_ms: median milliseconds of one denoiser call at ``batch`` images.
        step_iqr_ms: interquartile range of those rounds.
        fp_step_ms: median of full precision at its fastest setting, same process, same rounds.
        fp_setting: which setting that was, such as ``fp32 channels_last``.
        ratio: fp_step_ms / step_ms as the median of paired rounds; above 1 is faster than fp.
        ratio_low: lower end of the 95 % bootstrap interval of the ratio.
        ratio_high: upper end.
        image_ms: milliseconds of one image: all steps, denoiser only.
        batch: images a call (doubled inside by guidance where it is on).
        rounds: timed rounds.
        threads: torch threads.
        backend: ``packed``, ``reference`` or ``fp32``; only packed and fp32 are ranked.
        clock: ``perf_counter`` or ``cuda_event``.
        peak_bytes: peak resident growth (CPU) or peak allocated (GPU) during a step.
    """

    step_ms: float
    step_iqr_ms: float
    fp_step_ms: float
    fp_setting: str
    ratio: float
    ratio_low: float
    ratio_high: float
    image_ms: float
    batch: int
    rounds: int
    threads: int
    backend: str
    clock: str
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One cell's outcome.

    Attributes:
        cell: the full specification.
        status: how it ended.
        reason: one line, for every status but ok.
        backend: what made the images: ``packed``, ``reference``, ``fake`` or ``fp32``.
        measurements: all numbers of image quality.
        observed: bits, bytes and coverage read from the model.
        parity: packed against fake, None for full precision.
        latency: None until timed, or where it cannot be.
        calibration: step histogram, sample hash, seed, images.
        method: title, venue, paper, version, origin (``builtin`` or ``plugin``), code hash.
        workload: model sha256, scheduler, steps, guidance, resolution, reference, licence.
        machine: processor, cores, memory, library versions, git commit.
        seconds: wall seconds of each stage.
        peak_bytes: high-water mark of the process at the cell's end; it is reset when a station
            measures its own peak, and a long-lived worker shares it among its cells.
        stage_keys: content hash of each cached stage.
        artefacts: paths relative to the results folder: ``images`` (folder of NNNN.png),
            ``scores`` (npz of per-image arrays named as the measurements).
        warnings: lines worth a reader's attention.
        started: UTC, ISO 8601.
        finished: UTC, ISO 8601.
        attempt: how often this cell was tried.
        schema_version: of this document.
    """

    cell: Cell
    status: Status
    reason: str | None = None
    backend: str = ""
    measurements: tuple[Measurement, ...] = ()
    observed: Observed | None = None
    parity: Parity | None = None
    latency: Latency | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    stage_keys: dict[str, str] = field(default_factory=dict)
    artefacts: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    started: str = ""
    finished: str = ""
    attempt: int = 1
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """The cell's key."""
        return self.cell.key

    def measurement(self, name: str) -> Measurement | None:
        """The measurement of that exact name, if there is one."""
        return next((m for m in self.measurements if m.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only, with the key repeated for readers without this library."""
        return {"key": self.key, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Row":
        """Read a row document.

        Raises:
            ValueError: another schema version, a missing or unknown field, or a key that does
                not belong to the cell.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"row has schema version {version}, this is {SCHEMA_VERSION}")
        plain = {name: value for name, value in data.items() if name not in ("key", "digest")}
        try:
            cell = Cell.from_dict(plain.pop("cell"))
            plain["status"] = Status(plain["status"])
            plain["measurements"] = tuple(Measurement(**m) for m in plain["measurements"])
            plain["warnings"] = tuple(plain.get("warnings", ()))
            for name, kind in (("observed", Observed), ("parity", Parity), ("latency", Latency)):
                if plain.get(name) is not None:
                    plain[name] = kind(**plain[name])
            row = cls(cell=cell, **plain)
        except (KeyError, TypeError) as error:
            raise ValueError(f"row does not fit schema version {SCHEMA_VERSION}: {error}") from None
        if data.get("key") not in (None, row.key):
            raise ValueError(f"row key {data['key']} does not belong to its cell ({row.key})")
        return row
