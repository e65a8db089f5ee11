"""A run whose second method changes its process: the other rows are as if it had not."""

import json
import os

import pytest

from quantarena.bench import process_state
from quantarena.bench.run import executors
from quantarena.bench.run.local_executor import LocalExecutor
from quantarena.bench.spec import Cell


@pytest.fixture(autouse=True)
def guarded(bench, monkeypatch):
    monkeypatch.setattr(executors, "STAGES", "guarded_stages")
    monkeypatch.setattr(process_state, "_lasting", {})


def warned(bench):
    return {
        f"{row.cell.method}/{row.cell.bits}": line
        for row in bench.rows()
        for line in row.warnings
        if "for good" in line
    }


def test_what_can_be_undone_reaches_no_other_row(bench):
    bench.behave(rtn__w4a8="rude", rtn__w4a4="rude")
    for _ in range(2):  # the second run finds nothing left to do
        code, _, err = bench("run", "smoke", "--executor", "local")
        assert code == 0, err
        assert "child process" not in err
    rows = bench.rows()
    assert len({row.cell.method for row in rows}) == 3
    assert [str(row.status) for row in rows] == ["ok"] * 5
    assert warned(bench) == {}
    assert process_state.lasting_changes() == ()


def test_a_method_that_closes_the_standard_streams_ends_no_run(bench, run_script):
    bench.behave(rtn__w4a8="deaf")
    words = ("run", "smoke", "--executor", "local", "--json")
    ended = run_script(bench, *words, stages="guarded_stages")
    assert ended.returncode == 0, ended.stderr
    assert [str(row.status) for row in bench.rows()] == ["ok"] * 5
    assert len(json.loads(ended.stdout)["rows"]) == 5
    assert "[11/11]" in ended.stderr


def test_what_children_inherit_is_said_on_later_rows_and_blamed_on_one(bench):
    bench.behave(rtn__w4a8="rlimit")
    code, _, err = bench("run", "smoke", "--executor", "local")
    assert code == 0, err
    lines = warned(bench)
    assert lines.pop("rtn/w4a8").startswith("its process was changed for good: the limit RLIMIT_C")
    order = [line.split()[1] for line in bench.log() if line.startswith("cell ")]
    later = order[order.index("rtn/w4a8") + 1 :]
    assert later
    assert lines.keys() >= set(later)
    assert all(line.startswith("earlier work of this run, not this row") for line in lines.values())
    assert err.count("a child process does the rest") == 1


def test_a_change_from_before_the_run_is_no_rows_fault(bench):
    """Such as that of a plug-in, which is imported while the run is planned."""
    process_state._lasting["the number of stools"] = False
    code, _, err = bench("run", "smoke", "--executor", "local")
    assert code == 0, err
    assert [str(row.status) for row in bench.rows()] == ["ok"] * 5
    assert warned(bench) == {}
    pids = {line.split()[-1] for line in (bench.cache / "log.txt").read_text().splitlines()}
    assert str(os.getpid()) not in pids, "child processes did all of it"


def test_a_task_answers_for_its_own_changes_only(bench):
    setting = executors.Setting(str(bench.results), str(bench.cache), "fake_stages")
    executor = LocalExecutor(setting, lambda *news: None)
    process_state._lasting["the number of stools"] = False
    for what, lasting in (("ok", ()), ("lasting", ("the number of chairs",)), ("ok", ())):
        bench.behave(rtn__w4a8=what)
        executor.start(executors.Task("cell", Cell("emoji-t2i", "rtn", "w4a8")))
        assert executor.wait().lasting == lasting
