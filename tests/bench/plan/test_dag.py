import itertools
from dataclasses import replace

import pytest

from quantarena.bench import machine
from quantarena.bench.plan.dag import (
    MODEL,
    SETTING,
    TIME,
    Dag,
    Known,
    Stage,
    model_key,
    stage_dag,
)
from quantarena.bench.plan.estimate import FLOOR, REAL, RECORD, SHARED_STAGES, Rates
from quantarena.bench.plan.outlook import outlook_document, outlook_lines
from quantarena.bench.plan.past import past
from quantarena.bench.plan.plan import make_plan
from quantarena.bench.plan.presets import PRESETS
from quantarena.bench.plan.schedule import Costs, simulate
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.storage.prepared import note_prepared
from quantarena.bench.storage.stages import Use
from quantarena.bench.target import Target

METHODS = ("fp", "rtn", "q_diffusion")
CELLS = tuple(
    Cell("emoji-t2i", method, "fp" if method == "fp" else "w4a8", seed)
    for seed in (0, 1)
    for method in METHODS
)


def dag(cells=CELLS, **known):
    return stage_dag(cells, Known(Rates({}), **known))


def named(found, name):
    return [stage for stage in found.stages.values() if stage.name == name]


def test_what_is_shared_by_which_cells():
    found = dag()
    assert [s.cells for s in named(found, RECORD)] == [3, 3]  # one for each seed
    assert [s.cells for s in named(found, REAL)] == [6]  # of all seeds
    assert [s.cells for s in named(found, SETTING)] == [6]
    assert [s.cells for s in named(found, MODEL)] == [1] * 4  # full precision has none
    assert len(named(found, TIME)) == 6
    labels = {stage.label for stage in found.shared}
    assert "recording of emoji-t2i, seed 1" in labels
    assert "real images of emoji-t2i" in labels


def test_cells_that_differ_in_number_format_share_model_and_recording():
    one = Cell("emoji-t2i", "rtn", "w4a8")
    other = replace(one, target=Target(dtype="bf16"))
    more = replace(one, budget=Budget(images=256))
    found = dag([one, other, more])
    assert [s.cells for s in named(found, MODEL)] == [3]
    assert [s.cells for s in named(found, RECORD)] == [3]
    assert sorted(s.cells for s in named(found, FLOOR)) == [1, 2]  # of 128 and of 256 images
    for change in ({"bits": "w4a4"}, {"seed": 1}, {"budget": Budget(iterations=7)}):
        assert model_key(replace(one, **change)) != model_key(one)


def test_stages_come_after_what_they_need_and_name_only_what_is_there():
    found, seen = dag(), set()
    for key, stage in found.stages.items():
        assert set(stage.needs) <= seen, stage.label
        seen.add(key)
    waits = found.waits()
    prepare, cell = (
        f"{kind}:{key}" for kind, key in (("prepare", CELLS[4].shared_key), ("cell", CELLS[4].key))
    )
    assert prepare in waits[cell]
    assert waits[f"time:{CELLS[4].key}"] >= {cell}


def test_what_is_done_or_cached_costs_nothing():
    whole = sum(dag().tasks().values())
    done = dag(done={CELLS[1].key}, timed={CELLS[1].key})
    assert not {f"cell:{CELLS[1].key}", f"time:{CELLS[1].key}"} & set(done.tasks())
    assert sum(done.tasks().values()) < whole
    everything = dag(
        done={c.key for c in CELLS},
        timed={c.key for c in CELLS},
        prepared={c.shared_key for c in CELLS},
    )
    assert everything.tasks() == {}
    assert simulate(everything, 8, Costs(start=9, end=9)).seconds == 0


def test_a_model_of_another_run_is_cached():
    model = model_key(CELLS[1])
    found = dag(models={model})
    assert [s.cached for s in named(found, MODEL)] == [True, False, False, False]
    assert f"cell:{CELLS[1].key}" in found.tasks()  # its images are still to be drawn


def chain(*seconds, task="cell:a"):
    keys = [f"s{i}" for i in range(len(seconds))]
    return Dag(
        {
            key: Stage("score", key, key, f"{task}{i}", tuple(keys[i - 1 : i]), seconds=value)
            for i, (key, value) in enumerate(zip(keys, seconds, strict=True))
        }
    )


def test_the_critical_path_is_the_longest_chain():
    seconds, stages = chain(1.0, 2.0, 3.0).critical()
    assert seconds == 6.0
    assert [stage.key for stage in stages] == ["s0", "s1", "s2"]
    assert Dag({}).critical() == (0.0, ())


def test_the_critical_path_has_whole_tasks_and_latencies_after_all_cells():
    """A cell begins when all its shared stages are there, and no stage beside another of a task."""
    found = dag()
    seconds, chain = found.critical()
    spent = found.tasks()
    kinds = ("prepare:", "cell:", "time:")
    longest = [max(s for task, s in spent.items() if task.startswith(kind)) for kind in kinds]
    assert seconds == pytest.approx(sum(longest))
    assert seconds == pytest.approx(simulate(found, 1000, machines=1000).seconds)
    names = [stage.name for stage in chain]
    assert names == ["record", "fp images", "floor", "model", "images", "score", "time"]


def test_a_model_that_another_cell_makes_is_waited_for_but_not_that_cells_images():
    cells = [replace(CELLS[1], target=Target(dtype=dtype)) for dtype in ("fp32", "bf16")]
    found = dag(cells)
    (model,) = named(found, MODEL)
    waiting = [s for s in named(found, "images") if s.task != model.task]
    assert [model.key in s.needs for s in waiting] == [True]
    others = {stage.key for stage in found.stages.values() if stage.task == model.task}
    assert all(others & set(s.needs) == {model.key} for s in waiting)


def test_latencies_wait_for_the_longest_cell_of_all():
    stages = [
        Stage("score", "short", "", "cell:0", seconds=1.0),
        Stage("score", "long", "", "cell:1", seconds=9.0),
        Stage("time", "t", "", "time:0", ("short",), seconds=2.0, alone=True),
    ]
    seconds, chain = Dag({stage.key: stage for stage in stages}).critical()
    assert (seconds, [stage.key for stage in chain]) == (11.0, ["long", "t"])


def test_cells_start_in_the_order_in_which_their_groups_were_prepared():
    """As the runner's queue: the first group's short cells before the second one's long cell."""
    stages = [
        Stage("record", "a", "", "prepare:a", seconds=1.0),
        Stage("record", "b", "", "prepare:b", seconds=1.0),
        *(Stage("score", f"a{n}", "", f"cell:a{n}", ("a",), seconds=2.0) for n in range(2)),
        Stage("score", "b0", "", "cell:b0", ("b",), seconds=4.0),
    ]
    assert simulate(Dag({stage.key: stage for stage in stages}), 2).seconds == 1 + 2 + 4


def tasks(*seconds):
    return Dag({f"s{i}": Stage("score", f"s{i}", "", f"cell:{i}", seconds=s)
                for i, s in enumerate(seconds)})  # fmt: skip


def test_the_schedule_of_independent_tasks_is_longest_first():
    assert simulate(tasks(3, 3, 2, 2, 2), 2).seconds == 7
    assert simulate(tasks(3, 3, 2, 2, 2), 1).seconds == 12
    assert simulate(tasks(3, 3, 2, 2, 2), 99).seconds == 3


def test_no_number_of_workers_beats_the_critical_path_or_doubles_speed_more_than_it_should():
    found = dag()
    critical, _ = found.critical()
    spans = [simulate(found, workers).seconds for workers in (1, 2, 4, 64)]
    assert spans == sorted(spans, reverse=True)
    assert spans[-1] >= critical
    assert all(one <= 2 * two + 1e-9 for one, two in itertools.pairwise(spans[:3]))
    assert simulate(found, 1).seconds == pytest.approx(sum(found.tasks().values()))


def test_the_driver_is_the_limit_of_many_workers():
    """A thousand tasks of a second each, and a driver that takes 10 ms for each."""
    many = tasks(*[1.0] * 1000)
    found = simulate(many, 1000, Costs(task=0.01))
    assert found.seconds == pytest.approx(11.0, abs=0.1)
    assert found.driver > 0.9
    assert found.waits > 4
    assert simulate(many, 10, Costs(task=0.01)).seconds == pytest.approx(101, abs=3)


def test_latencies_go_one_at_a_time_on_each_machine():
    timed = Dag({f"t{i}": Stage("time", f"t{i}", "", f"time:{i}", seconds=1.0) for i in range(8)})
    assert simulate(timed, 8).seconds == 8
    assert simulate(timed, 8, machines=4).seconds == 2


# ---- the past --------------------------------------------------------------------------------


HERE = {"cpu": "x", "cores": 2, "gpu": None}


def entry(cache, name):
    (cache / name).mkdir(parents=True)
    return Use(name, 30.0 if "trajectory" in name else 8.0, 5_000_000, tuple(HERE.items()))


def test_what_the_stage_cache_says_of_shared_stages(tmp_path):
    uses = tuple(entry(tmp_path, name) for name in ("trajectory-1", "images-2", "latents-2"))
    note_prepared(tmp_path, CELLS[0], "now", uses)
    found = past(tmp_path, CELLS, (), lambda cell: "now", HERE)
    assert found.shared == {
        (CELLS[0].shared_key, "record"): (30.0, 5_000_000),
        (CELLS[0].shared_key, "fp images"): (16.0, 10_000_000),
    }
    # the other seed's stages take what these took
    rates = Rates.of((), HERE, shared=found.made_here)
    assert rates.shared_seconds("record", CELLS[3]) == (pytest.approx(30.0), True)
    # another code, another machine, an entry that was deleted
    assert past(tmp_path, CELLS, (), lambda cell: "later", HERE).shared == {}
    assert past(tmp_path, CELLS, (), lambda cell: "now", {**HERE, "cpu": "y"}).made_here == ()
    (tmp_path / "trajectory-1").rmdir()
    assert past(tmp_path, CELLS, (), lambda cell: "now", HERE).shared == {}


def test_a_damaged_note_is_no_note(tmp_path):
    note_prepared(tmp_path, CELLS[0], "now", (entry(tmp_path, "trajectory-1"),))
    file = next((tmp_path / ".prepared").glob("*.json"))
    file.write_text(file.read_text()[:-20])
    assert past(tmp_path, CELLS, (), lambda cell: "now", HERE).shared == {}


def test_a_plan_names_its_path_its_sharing_and_what_is_measured():
    grid = PRESETS["quick"].grid
    rows = [
        Row(cell, Status.OK, machine=machine.fingerprint(), seconds={"quantize": 50.0})
        for cell in grid.cells()[:9]
    ]
    plan = make_plan(grid, rows, workers=8, executor="ray")
    text = "\n".join(outlook_lines(plan))
    assert "with 8 workers: " in text
    assert "critical path " in text
    assert "recording of emoji-dit, seed 0, by 63 cells" in text
    document = outlook_document(plan)
    assert document["critical_path"]["seconds"] <= document["schedule"]["seconds"]
    basis = {s["name"]: s["measured"] for s in document["stages"] if s["name"] in SHARED_STAGES}
    assert basis["record"] is False
    assert any(s["measured"] for s in document["stages"] if s["name"] == "model")
