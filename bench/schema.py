"""The result row: one JSON document per cell. Every key is described here. No torch."""

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from quantarena.bench.documents import read, read_text
from quantarena.bench.migrate import migrate
from quantarena.bench.spec import Cell

SCHEMA_VERSION = 6
"""Raised by one with every change of a field; ``migrate.py`` then gets a step."""


SUSPECT = "suspect: "
"""Start of a warning that something on our own side may be wrong; the page shows these apart."""
SELF_REPORTED = "self-reported: "
"""Start of a warning that nobody but the sender of a row has checked it, and why."""
DRAWN_ELSEWHERE = "latency: its images were drawn on another machine"
"""Start of a warning that a row's machine has timed it, and not drawn its images."""


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
        name: the metric with its implementation and extractor, such as ``kid/effnet-lite0``.
        value: the number, or None when it was not computed (``reason`` says why).
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: number of images (or timed rounds) behind the value.
        unit: such as ``dB``; empty for a plain number.
        higher_is_better: whether a larger value is a better one.
        board: ``fidelity`` (against full precision's images of the same seeds), ``quality``
            (against real images or the prompt), or ``floor`` (the size of differences that mean
            nothing; only full precision's row has these).
        impl: library and version that computed the value.
        extractor_sha256: hash of the feature network's weights, if one was used.
        reference: what the images were compared with: ``fp``, or the name and hash of a set.
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
    """Bits, bytes and operations counted in the packed model, not taken from a method's name.

    MACs are the multiply-accumulates of one network call on one image. The last five numbers are
    None in the first rows of schema version 1, which were written before they were counted.

    Attributes:
        weight_bits: mean bits of a number of the denoiser that takes 32 bits in full precision,
            full-precision layers and buffers included: ``32 * packed_bytes / fp_bytes``.
        act_bits: mean bits of an activation, weighted by MACs.
        coverage: share of the denoiser's MACs at each width, such as ``{"w4a8": 0.97}``.
        packed_bytes: bytes of the packed denoiser's parameters and buffers, as memory holds them.
        fp_bytes: bytes of full precision's parameters and buffers in fp32.
        layers: number of quantized layers.
        code_bits: mean bits of a weight code over all layers; a floating-point weight counts 32.
        bops: bit operations of one network call on one image: MACs times the bits of both factors.
        fp_bops: bit operations of full precision, where both factors have 32 bits.
        branch_macs: MACs of the floating-point branches beside quantized layers.
        attention: number of quantized attention products.
    """

    weight_bits: float
    act_bits: float
    coverage: dict[str, float]
    packed_bytes: int
    fp_bytes: int
    layers: int
    code_bits: float | None
    bops: int | None
    fp_bops: int | None
    branch_macs: int | None
    attention: int | None


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the packed layers are from their simulation in floating point, on recorded inputs.

    Attributes:
        max_rel: the largest relative difference of any layer: the largest absolute difference of
            its outputs, divided by its largest absolute output.
        worst_layer: name of the layer with that difference.
        layers: number of layers compared.
        limit: largest ``max_rel`` that the parity gate lets pass.
    """

    max_rel: float
    worst_layer: str
    layers: int
    limit: float


@dataclass(frozen=True, slots=True)
class Step:
    """The form in which a network's step was timed.

    Attributes:
        form: ``recorded`` (one list of operations in C, docs/kernels.md) or ``eager`` (as the
            network is written).
        native_pieces: calls of our library in a recorded step.
        torch_pieces: operations that a recorded step leaves to torch.
        arena_bytes: memory of a recorded step's intermediate results.
        prepare_seconds: wall seconds of recording it, which are not in the times.
        reason: why it was timed as written; empty where it was recorded.
    """

    form: str
    native_pieces: int = 0
    torch_pieces: int = 0
    arena_bytes: int = 0
    prepare_seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one denoiser step and of one image, timed alone, interleaved with full precision.

    Attributes:
        step_ms: median milliseconds of one denoiser call with ``batch`` images.
        step_iqr_ms: interquartile range of the milliseconds of the timed rounds.
        fp_step_ms: median milliseconds of full precision at its fastest setting, timed in the
            same process, its rounds interleaved with those of this network.
        fp_setting: that fastest setting, such as ``fp32 channels_last`` or ``openvino bf16``: of
            those whose images stay within full precision's own margin.
        ratio: speed-up, the median over paired rounds of full precision's time divided by this
            network's; above 1 is faster than full precision.
        ratio_low: lower end of the 95 % bootstrap interval of the ratio.
        ratio_high: upper end of that interval.
        image_ms: milliseconds of the denoiser for one image, over all sampler steps.
        batch: images per call (the network sees twice as many where guidance is on).
        rounds: number of timed rounds.
        threads: number of torch threads.
        backend: what ran the layers, as in ``Row.backend``; ``packed`` and rivals' own are ranked
            by speed.
        clock: ``perf_counter`` or ``cuda_event``.
        peak_bytes: growth of resident memory (CPU) or of allocated memory (GPU) during a step;
            with ``offload`` it holds the largest block.
        step: the form of this network's step; None in rows of schema versions before 6.
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
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """What a row's networks ran on. What cannot be read is None.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``mps``.
        name: of the processor or the GPU.
        driver: version of the GPU's driver; None on a CPU.
        memory_bytes: memory of the GPU, or what this process may use of the machine's.
        clock_mhz: highest clock of the processor, or of the GPU's multiprocessors.
        memory_clock_mhz: highest clock of the GPU's memory.
        power_cap_w: watts that the GPU may take.
    """

    kind: str
    name: str
    driver: str | None = None
    memory_bytes: int | None = None
    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_cap_w: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One cell's outcome.

    Attributes:
        cell: the full specification.
        status: how the cell ended.
        reason: why it is not ok, in one line; None where it is.
        backend: the slowest kind of layer that made the images: ``packed`` (integer kernels),
            ``weight-only`` (integer weights, floating-point arithmetic), ``reference`` (the codes
            of the integer kernels computed by torch), or ``fp32`` (nothing is quantized). A rival
            names what ran it, such as ``openvino int8``.
        measurements: all measurements of image quality.
        observed: bits, bytes and operations counted in the packed model.
        parity: distance of packed layers from their simulation, None for full precision and for
            rivals, which have no simulation.
        latency: None until it is timed, or where it cannot be.
        latency_by_batch: times at the budget's further batches, in their order.
        calibration: call policy, histogram of the drawn sampler calls, hash of the samples, seed.
        method: title, venue, paper, version, origin (``builtin`` or ``plugin``), code hash.
        workload: model sha256, scheduler, steps, guidance, resolution, reference, licence.
        machine: processor, cores, memory, library versions, git commit.
        device: what the networks ran on; None in rows of schema versions before 4.
        seconds: wall seconds of each stage.
        peak_bytes: largest resident memory of the process at the cell's end. A stage that
            measures its own peak resets it, and the cells of a long-lived worker share it.
        stage_keys: content hash of each cached stage.
        artefacts: paths relative to the results folder: ``images`` (folder of NNNN.png) and
            ``scores`` (npz of numbers by image, see ``scores.py``); and hashes of what they hold:
            ``scores_sha256`` of the file, ``images_sha256`` of the listing of the images
            (``content.listing_sha256``). Rows of earlier versions have no hashes.
        warnings: lines worth a reader's attention; those that begin with ``SUSPECT`` most of all.
        started: start of the attempt, UTC in ISO 8601.
        finished: end of the attempt, UTC in ISO 8601.
        attempt: number of this attempt at the cell, from 1.
        schema_version: version of this document's schema.
    """

    cell: Cell
    status: Status
    reason: str | None = None
    backend: str = ""
    measurements: tuple[Measurement, ...] = ()
    observed: Observed | None = None
    parity: Parity | None = None
    latency: Latency | None = None
    latency_by_batch: tuple[Latency, ...] = ()
    calibration: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    device: Device | None = None
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
        """The row of a document, whose schema version may be an earlier one.

        Raises:
            ValueError: one line: a later schema version, a missing or unknown field, a value of
                another type, or a key that does not belong to the cell.
        """
        plain = migrate(data, SCHEMA_VERSION)
        row = read(cls, {name: value for name, value in plain.items() if name != "key"})
        if plain.get("key", row.key) != row.key:
            raise ValueError(f"row key {plain['key']} does not belong to its cell ({row.key})")
        return row

    @classmethod
    def from_text(cls, text: str, data: dict[str, Any], digest: str) -> "Row | None":
        """As ``from_dict``, from the text of the document as the store writes it, which is faster.

        Args:
            text: JSON of the document, with its digest.
            data: the document.
            digest: its digest.

        Returns:
            The row; None where the text has another form or version, or a fault: ``from_dict``
            names it.
        """
        key = data.get("key")
        head, tail = f'{{\n "key": "{key}",', f',\n "digest": "{digest}"\n}}'
        text = text.rstrip()
        ours = text.startswith(head) and text.endswith(tail)
        if not ours or data.get("schema_version") != SCHEMA_VERSION:
            return None
        try:
            row = read_text(cls, "{" + text[len(head) : -len(tail)] + "}")
        except ValueError:
            return None
        return row if row.key == key else None
