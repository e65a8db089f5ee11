from dataclasses import replace

import pytest

from quantarena.bench import machine
from quantarena.bench.plan.estimate import Rates, Todo, remaining_seconds
from quantarena.bench.plan.plan import Facts, choose_fan, make_plan, minutes, plan_lines
from quantarena.bench.plan.presets import PRESETS
from quantarena.bench.run.progress import Pace
from quantarena.bench.schema import Latency, Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.target import DEFAULT_TARGET, Target

GRID = PRESETS["quick"].grid
CELLS = GRID.cells()
LATENCY = Latency(1, 0, 1, "fp32", 1, 1, 1, 1, 1, 20, 1, "packed", "perf_counter", 1)


def row(cell, status=Status.OK, **more):
    return Row(cell, status, machine=machine.fingerprint(), **{"latency": LATENCY, **more})


def test_everything_is_missing_at_first():
    plan = make_plan(GRID, ())
    assert plan.todo.cells == plan.cells == plan.todo.untimed == CELLS
    assert len(plan.todo.shared) == len(GRID.workloads) == 3
    assert not plan.measured
    assert plan.seconds > 60


def test_a_plan_says_where_widths_are_left_out(tmp_path):
    assert (
        "fewer widths on cifar10-uncond, emoji-t2i" in plan_lines(make_plan(GRID, ()), tmp_path)[0]
    )
    full = make_plan(PRESETS["full"].grid, ())
    assert "fewer widths" not in plan_lines(full, tmp_path)[0]


def test_what_is_done_is_subtracted():
    half = make_plan(GRID, [row(cell) for cell in CELLS[:4]])
    assert half.todo.cells == CELLS[4:]
    assert len(half.done) == 4
    assert half.seconds < make_plan(GRID, ()).seconds
    full = make_plan(GRID, [row(cell) for cell in CELLS])
    assert not full.todo
    assert full.seconds == 0
    assert plan_lines(full, "results/quick")[1] == "  nothing to run"


@pytest.mark.parametrize(
    ("status", "again"),
    [("ok", False), ("skipped", False), ("failed", True), ("timeout", True), ("oom", True)],
)
def test_which_rows_are_done(status, again):
    rows = [row(cell) for cell in CELLS[1:]] + [row(CELLS[0], Status(status))]
    assert bool(make_plan(GRID, rows).todo.cells) is again


def test_force_runs_all_again():
    assert make_plan(GRID, [row(cell) for cell in CELLS], force=True).todo.cells == CELLS


def test_rows_that_were_never_timed_are_timed():
    rows = [row(cell) for cell in CELLS[1:]] + [row(CELLS[0], latency=None)]
    plan = make_plan(GRID, rows)
    assert plan.todo.cells == ()
    assert plan.todo.untimed == (CELLS[0],)
    assert not make_plan(GRID, [*rows, row(CELLS[0], seconds={"time": 1.0})]).todo


def test_a_timing_that_failed_is_tried_again():
    failed = row(CELLS[0], latency=None, seconds={"time": 1.0})
    plan = make_plan(GRID, [*map(row, CELLS[1:]), failed])
    assert plan.todo.untimed == (CELLS[0],)


def test_stale_rows_run_again():
    facts = Facts(stamp=lambda cell: "new")
    rows = [row(cell, stage_keys={"inputs": "new"}) for cell in CELLS[1:]]
    plan = make_plan(GRID, [*rows, row(CELLS[0], stage_keys={"inputs": "old"})], facts=facts)
    assert plan.todo.cells == (CELLS[0],)
    assert plan.stale == {CELLS[0].key}
    assert not make_plan(GRID, [*rows, row(CELLS[0])], facts=facts).todo


def test_measured_rows_replace_the_defaults():
    slow = {"quantize": 1000.0, "sample": 500.0, "score": 50.0}
    plan = make_plan(GRID, [row(CELLS[-1], seconds=slow)])
    assert plan.measured
    same = Rates.of([row(CELLS[-1], seconds=slow)], machine.fingerprint())
    assert same.stage_seconds("quantize", CELLS[-1]) == pytest.approx(1000)
    # Twice the images take twice as long, at another budget too.
    more = replace(CELLS[-1], budget=replace(CELLS[-1].budget, images=2 * CELLS[-1].budget.images))
    assert same.stage_seconds("sample", more) == pytest.approx(1000)


def test_a_rate_comes_from_the_nearest_row():
    fast, slow = Cell("w", "rtn", "w4a4"), Cell("w", "q_diffusion", "w4a4")
    rows = [row(fast, seconds={"sample": 10.0}), row(slow, seconds={"sample": 90.0})]
    rates = Rates.of(rows, machine.fingerprint())
    assert rates.stage_seconds("sample", replace(slow, bits="w8a8")) == pytest.approx(90)
    assert rates.stage_seconds("sample", replace(fast, method="new")) == pytest.approx(50)


def test_a_rate_of_the_same_workload_comes_first():
    near, far = Cell("w", "rtn", "w4a4"), Cell("other", "q_diffusion", "w4a4")
    rows = [row(near, seconds={"sample": 10.0}), row(far, seconds={"sample": 90.0})]
    rates = Rates.of(rows, machine.fingerprint())
    assert rates.stage_seconds("sample", replace(far, workload="w")) == pytest.approx(10)
    assert rates.stage_seconds("sample", replace(far, workload="third")) == pytest.approx(90)


def test_rows_of_another_machine_say_nothing():
    foreign = replace(row(CELLS[0], seconds={"sample": 9.0}), machine={"cpu": "other", "cores": 2})
    assert not Rates.of([foreign], machine.fingerprint())


def test_two_workers_halve_the_fan_but_not_the_timing():
    todo = Todo(cells=CELLS[1:], untimed=CELLS)
    rates = Rates({})
    one, two = (remaining_seconds(todo, rates, n) for n in (1, 2))
    alone = remaining_seconds(Todo(untimed=CELLS), rates, 1)
    assert alone < two < one
    assert two > alone + (one - alone) / 2 - 1e-6
    assert remaining_seconds(Todo(), rates, 2) == 0


def test_a_task_that_is_late_makes_the_estimate_longer():
    cells = [Cell("w", "q_diffusion", bits) for bits in ("w8a8", "w4a8", "w4a4")]
    todo, rates = Todo(cells=tuple(cells)), Rates({})
    one = rates.cell_seconds(cells[0])
    left = [
        remaining_seconds(todo, rates, 1, {f"cell:{cells[0].key}": share * one})
        for share in (0.0, 0.5, 1.0, 2.0)
    ]
    assert left[0] - left[1] == pytest.approx(one / 2)
    assert left[1] - left[2] == pytest.approx(0.4 * one)
    assert left[3] > left[2] + one


def test_the_pace_of_a_running_cell_is_believed_before_it_is_late():
    cells = [Cell("w", "q_diffusion", bits) for bits in ("w8a8", "w4a8")]
    todo, rates = Todo(cells=tuple(cells)), Rates({})
    one, task = rates.cell_seconds(cells[0]), f"cell:{cells[0].key}"
    half = {task: one / 2}
    left = remaining_seconds(todo, rates, 1, half, {task: 10 * one})
    # the rest of this one, and the other of its method
    assert left == pytest.approx(9.5 * one + 10 * one, rel=0.1)
    assert remaining_seconds(todo, rates, 1, half, {task: 0.1 * one}) < 2 * one


def test_a_pace_is_of_one_stage_after_ten_seconds():
    assert Pace("quantize", 100.0, 105.0, 1, 100).whole(90.0) == 0
    assert Pace("quantize", 100.0, 120.0, 0, 100).whole(90.0) == 0
    assert Pace("quantize", 100.0, 120.0, 10, 100).whole(90.0) == 10 + 200


def test_shared_stages_that_are_cached_cost_nothing():
    fresh = Todo(shared=CELLS[:1], cells=CELLS[1:])
    cached = replace(fresh, prepared=frozenset({CELLS[0].shared_key}))
    assert remaining_seconds(cached, Rates({}), 1) < remaining_seconds(fresh, Rates({}), 1)


def test_disk_grows_with_the_images():
    small, large = (make_plan(PRESETS[name].grid, ()).disk for name in ("smoke", "full"))
    assert 1e6 < small < large


@pytest.mark.parametrize(
    ("executor", "workers", "missing", "expected"),
    [
        ("auto", 2, 7, ("ray", 2)),
        ("auto", 2, 2, ("local", 1)),
        ("auto", 1, 50, ("local", 1)),
        ("local", 4, 50, ("local", 1)),
        ("ray", 8, 3, ("ray", 3)),
        ("ray", 2, 0, ("ray", 1)),
    ],
)
def test_the_executor_fits_the_work(executor, workers, missing, expected):
    fan = choose_fan(executor, workers, missing, DEFAULT_TARGET)
    assert (fan.executor, fan.workers) == expected


def test_one_process_has_the_whole_gpu():
    assert choose_fan("auto", 8, 50, Target("cuda")).executor == "local"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 s"), (40, "40 s"), (100, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")],
)
def test_durations_in_words(seconds, text):
    assert minutes(seconds) == text
