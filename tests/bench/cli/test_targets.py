"""The options of a target and of further batches, from the command line to the grid."""

import pytest

from quantarena.bench.cli.options import RequestOptions, made_request
from quantarena.bench.errors import UserError
from quantarena.bench.plan import presets
from quantarena.bench.target import DEFAULT_TARGET, Target


def test_without_them_the_preset_is_as_it_is():
    request = made_request(RequestOptions("smoke"))
    assert request.grid.target == DEFAULT_TARGET
    assert request.grid.name == "smoke"
    assert all(cell.target == DEFAULT_TARGET for cell in request.grid.cells())


def test_a_target_reaches_every_cell_the_folder_and_the_command():
    request = made_request(RequestOptions("smoke", dtype="bf16", threads=2))
    assert {cell.target for cell in request.grid.cells()} == {Target(dtype="bf16", threads=2)}
    assert request.grid.name == "smoke-bf16-2-threads"
    assert request.command == "quantarena run smoke --dtype bf16 --threads 2"


def test_offloading_reaches_every_cell_the_folder_and_the_command(monkeypatch):
    monkeypatch.setattr("quantarena.bench.plan.lookup.check_target", lambda target: None)
    request = made_request(RequestOptions("smoke", device="cuda", offload=True))
    assert {cell.target for cell in request.grid.cells()} == {Target("cuda", offload=True)}
    assert request.grid.name == "smoke-cuda-offload"
    assert request.command == "quantarena run smoke --device cuda --offload"


def test_images_are_drawn_with_the_largest_batch_and_steps_timed_with_all():
    request = made_request(RequestOptions("smoke", batch="1,16,4"))
    budget = request.grid.budget
    assert (budget.batch, budget.latency_batches) == (16, (1, 4))
    assert request.command == "quantarena run smoke --batch 16,1,4"
    again = made_request(RequestOptions("smoke", batch="16,1,4"))
    assert again.grid == request.grid


def test_one_batch_is_as_before():
    budget = made_request(RequestOptions("smoke", batch="8")).grid.budget
    assert (budget.batch, budget.latency_batches) == (8, ())


@pytest.mark.parametrize("batch", ["0", "1,x", "1,", "-3", "99999999999"])
def test_a_batch_that_is_no_number_is_named(batch):
    with pytest.raises(UserError, match="--batch"):
        made_request(RequestOptions("smoke", batch=batch))


def test_ray_is_for_cpus(monkeypatch):
    monkeypatch.setattr("quantarena.bench.plan.lookup.check_target", lambda target: None)
    with pytest.raises(UserError, match="--executor ray runs on CPUs: for cuda take local"):
        made_request(RequestOptions("smoke", device="cuda", executor="ray"))


def test_quick_is_narrower_where_widths_say_least_until_bits_are_given():
    quick = presets.preset("quick").grid
    bits = {
        name: {c.bits for c in quick.cells() if (c.workload, c.method) == (name, "q_diffusion")}
        for name in quick.workloads
    }
    rivals = {(c.workload, c.bits) for c in quick.cells() if c.method == "nncf"}
    assert bits == {
        "emoji-t2i": {"w8a8", "w4a8", "w4a4"},
        "emoji-dit": {"w8a8", "w4a8", "w4a4", "w2a4"},
        "cifar10-uncond": {"w4a8", "w4a4"},
    }
    assert {name for name, _ in rivals} == set(quick.workloads), "rivals are nowhere left out"
    asked = presets.choose(quick, presets.Choice(bits=("w2a4",)))
    assert {c.workload for c in asked.cells() if c.bits == "w2a4"} == set(quick.workloads)
    full = presets.preset("full").grid
    assert {c.workload for c in full.cells() if c.bits == "w2a4"} == set(quick.workloads)
