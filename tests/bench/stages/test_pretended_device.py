"""Whole cells on a pretended CUDA device: recording, drawing and scoring mix no devices."""

from dataclasses import replace

import pytest
import torch

from quantarena.bench.devices import device
from quantarena.bench.schema import Status
from quantarena.bench.stages import latency, sequence
from quantarena.bench.target import Target
from quantarena.methods.testing.pretend import Pretended


def quiet(stage, done, total):
    """Progress that nobody watches."""


@pytest.mark.parametrize(("method", "bits"), [("fp", "fp"), ("rtn", "w4a8"), ("fp@bf16", "fp")])
def test_a_cell_on_the_card_is_the_cell_of_the_cpu(cell, paths, card, method, bits):
    here = replace(cell, method=method, bits=bits)
    there = replace(here, target=Target("cuda"))
    seen = []
    opened = sequence.open_workspace

    def watched(asked):
        workspace = opened(asked)
        seen.append(type(next(workspace.loaded.denoiser.parameters()).data))
        return workspace

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "open_workspace", watched)
        row = sequence.run_cell(there, paths, progress=quiet)
    assert row.status is Status.OK, row.reason
    assert seen == [Pretended], "the network was not on the card"
    assert row.device.name == "Pretended Card"
    plain = sequence.run_cell(here, paths, progress=quiet)
    assert plain.status is Status.OK, plain.reason
    values = {m.name: m.value for m in row.measurements}
    for wanted in plain.measurements:
        if wanted.value is not None:
            assert values[wanted.name] == pytest.approx(wanted.value, rel=0.01, abs=1e-5)
    if row.parity:
        assert row.parity.max_rel <= row.parity.limit
        assert row.backend == "reference", "the interpreter's times mean nothing"


OFFLOADED = Target("cuda", offload=True)


@pytest.mark.parametrize(
    ("method", "bits", "dtype"),
    [("fp", "fp", "fp32"), ("rtn", "w4a8", "fp32"), ("rtn", "w4a8", "bf16")],
)
def test_an_offloaded_cell_is_that_of_the_whole_network(cell, paths, card, method, bits, dtype):
    whole = replace(cell, method=method, bits=bits, target=Target("cuda", dtype))
    wanted = sequence.run_cell(whole, paths, progress=quiet)
    assert wanted.status is Status.OK, wanted.reason
    card.restart()
    row = sequence.run_cell(
        replace(whole, target=replace(whole.target, offload=True)), paths, progress=quiet
    )
    assert row.status is Status.OK, row.reason
    assert card.peak > 0, "nothing ran on the card"
    assert {m.name: m.value for m in row.measurements} == {
        m.name: m.value for m in wanted.measurements
    }


@pytest.mark.parametrize(
    ("method", "bits", "line"),
    [("quest", "w4a8", "learns the whole network at once"), ("fp@bf16", "fp", "by a library")],
)
def test_what_cannot_be_offloaded_is_a_skipped_row(cell, paths, card, method, bits, line):
    asked = replace(cell, method=method, bits=bits, target=OFFLOADED)
    row = sequence.run_cell(asked, paths, progress=quiet)
    assert row.status is Status.SKIPPED
    assert row.reason.startswith(method)
    assert line in row.reason
    assert card.peak == 0


def test_networks_that_do_not_fit_are_a_row_with_the_option(cell, paths, card, monkeypatch):
    monkeypatch.setattr(device.fit, "free_bytes", lambda place: 1000)
    row = sequence.run_cell(replace(cell, target=Target("cuda")), paths, progress=quiet)
    assert row.status is Status.FAILED
    assert "1,000 are free there: add --offload" in row.reason


@pytest.mark.parametrize("offload", [False, True])
def test_a_device_without_memory_left_is_a_row_with_the_option(cell, paths, card, offload):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    asked = replace(cell, target=replace(OFFLOADED, offload=offload))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "trajectory", full)
        row = sequence.run_cell(asked, paths, progress=quiet)
    assert row.status is Status.OOM
    assert "Tried to allocate 20 GiB" in row.reason
    assert ("--offload has one block" in row.reason) != offload


def test_a_cached_model_is_loaded_onto_the_card(cell, paths, card):
    """Its tensors lie beside the network's own, so parity holds the second time too."""
    first = replace(cell, target=Target("cuda"))
    for asked in (first, replace(first, target=Target("cuda", threads=2))):
        row = sequence.run_cell(asked, paths, progress=quiet)
        assert row.status is Status.OK, row.reason
        assert row.parity.max_rel <= row.parity.limit


def test_times_of_offloaded_networks_say_that_weights_travel(cell, paths, card, monkeypatch):
    monkeypatch.setattr(latency, "peak_of", lambda call, place: (call(), card.peak)[1])
    monkeypatch.setattr(latency, "full_precision_settings", lambda: ())
    budget = replace(cell.budget, latency_rounds=2)
    asked = replace(cell, method="fp", bits="fp", target=OFFLOADED, budget=budget)
    row = sequence.time_cell(sequence.run_cell(asked, paths, progress=quiet), paths, progress=quiet)
    assert latency.TRAVELS in row.warnings
    assert row.latency.clock == "perf_counter"
    assert row.latency.peak_bytes > 0
