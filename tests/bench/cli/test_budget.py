"""The verb budget over fake stages."""

import json

import pytest

ASK = ("budget", "smoke", "--method", "rtn,q_diffusion", "--bits", "w4a8", "--name", "c")


def test_one_ordinary_run_for_each_factor_and_a_page(bench, real_page):
    code, out, err = bench(*ASK, "--factors", "1/4,1")
    assert code == 0, err
    for name, iterations in (("c-x0.25", 5), ("c-x1", 20)):
        rows = bench.rows(name)
        assert {row.cell.method for row in rows} == {"fp", "rtn", "q_diffusion"}
        assert {row.cell.budget.iterations for row in rows} == {iterations}
        assert {row.cell.budget.images for row in rows} == {16}
        assert (bench.results / name / "leaderboard.html").is_file()
    assert "Who wins" in (bench.results / "c/budget.html").read_text()
    document = json.loads((bench.results / "c/budget.json").read_text())
    assert [level["factor"] for level in document["levels"]] == ["1/4", "1"]
    assert "x1/4: " in out
    assert out.rstrip().endswith("c/budget.html")
    assert "about" in err.splitlines()[0]  # the estimate comes before anything runs
    work = bench.log()
    assert bench(*ASK, "--factors", "1/4,1")[0] == 0
    assert bench.log() == work


def test_a_plan_runs_nothing(bench):
    code, out, _ = bench(*ASK, "--plan", "--json")
    assert code == 0
    assert [each["run"] for each in json.loads(out)] == ["c-x0.25", "c-x1", "c-x4", "c-x16"]
    assert not bench.results.exists()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ("0", "give numbers from 1/1000 to 1000"),
        ("many", "give numbers from 1/1000 to 1000"),
        ("1,,4", "a name in it is empty"),
        ("1/1000,1/500", "come to the same budget"),
    ],
)
def test_bad_factors_are_one_line_and_exit_code_2(bench, factors, message):
    code, out, err = bench(*ASK, "--factors", factors)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not bench.results.exists()


def test_a_folder_of_another_budget_is_refused_before_anything_runs(bench):
    assert bench("run", "smoke", "--name", "c-x4")[0] == 0
    work = bench.log()
    code, _, err = bench(*ASK, "--factors", "1,4")
    assert code == 2
    assert "rows of another budget" in err
    assert bench.log() == work


def test_failed_cells_are_told_by_the_exit_code(bench, real_page):
    bench.behave(q_diffusion__w4a8="raise")
    code, _, _ = bench(*ASK, "--factors", "1")
    assert code == 1
    (panel,) = json.loads((bench.results / "c/budget.json").read_text())["panels"]
    states = {curve["method"]: curve["stops"][0]["state"] for curve in panel["curves"]}
    assert states == {"rtn": "ok", "q_diffusion": "failed"}
