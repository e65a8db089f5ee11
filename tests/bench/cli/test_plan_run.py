import json

import pytest


def test_a_run_ends_with_counts_and_the_page(bench, real_page):
    code, out, err = bench("run", "smoke")
    assert code == 0, err
    assert out == f"5 ok, 0 skipped, 0 failed -> {bench.results}/smoke/leaderboard.html\n"
    assert (bench.results / "smoke/leaderboard.html").is_file()
    assert (bench.results / "smoke/rows.csv").is_file()
    assert (bench.results / "smoke/rows.parquet").is_file()
    assert "plan smoke: 5 cells" in err
    assert "[11/11]" in err  # shared stages, five cells, five timings


def test_the_order_of_work(bench):
    bench("run", "smoke")
    log = bench.log()
    assert log[0].startswith("prepare")
    assert len([line for line in log if line.startswith("prepare")]) == 1
    assert [line.split()[0] for line in log] == ["prepare"] + ["cell"] * 5 + ["time"] * 5


def test_running_again_does_nothing(bench):
    bench("run", "smoke")
    before, page = bench.log(), (bench.results / "smoke/leaderboard.html").stat().st_mtime_ns
    code, out, err = bench("run", "smoke")
    assert code == 0
    assert out.startswith("5 ok")
    assert "nothing to run" in err
    assert bench.log() == before
    assert (bench.results / "smoke/leaderboard.html").stat().st_mtime_ns == page


def test_running_again_imports_neither_torch_nor_ray(bench, run_script):
    bench("run", "smoke")
    done = run_script(
        bench, "run", "smoke", epilogue="print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_force_runs_everything_again(bench):
    bench("run", "smoke")
    bench("run", "smoke", "--force")
    assert len([line for line in bench.log() if line.startswith("cell")]) == 10
    assert {row.attempt for row in bench.rows()} == {2}


def test_a_failed_cell_stops_no_other_and_is_tried_again(bench):
    bench.behave(rtn__w4a4="raise")
    code, out, err = bench("run", "smoke")
    assert code == 1
    assert out.startswith("4 ok, 0 skipped, 1 failed -> ")
    assert "emoji-t2i/rtn/w4a4 failed: RuntimeError: the fake was told to raise (fake_stages" in err
    assert "Traceback" not in err
    bench.behave()
    code, out, _ = bench("run", "smoke")
    assert (code, out.split(" -> ")[0]) == (0, "5 ok, 0 skipped, 0 failed")
    assert bench.log().count("cell rtn/w4a4") == 2
    assert bench.log().count("cell rtn/w4a8") == 1


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("raise", "failed", "RuntimeError"),
        ("memory", "oom", "out of memory"),
        ("wrong", "failed", "the stages returned the row of"),
    ],
)
def test_how_a_cell_fails_stands_on_its_row(bench, what, status, reason):
    bench.behave(rtn__w4a8=what)
    assert bench("run", "smoke")[0] == 1
    row = next(row for row in bench.rows() if (row.cell.method, row.cell.bits) == ("rtn", "w4a8"))
    assert row.status == status
    assert reason in row.reason
    assert row.machine["cpu"]
    assert row.started <= row.finished


def test_a_number_that_is_not_finite_is_not_stored_as_one(bench):
    bench.behave(rtn__w4a8="nan")
    bench("run", "smoke")
    row = next(row for row in bench.rows() if (row.cell.method, row.cell.bits) == ("rtn", "w4a8"))
    assert row.measurement("psnr").value is None
    assert row.measurement("psnr").reason == "not finite (nan)"


def test_a_skipped_cell_is_done_and_no_failure(bench):
    bench.behave(q_diffusion__w4a4="skip")
    code, out, err = bench("run", "smoke")
    assert (code, out.split(" -> ")[0]) == (0, "4 ok, 1 skipped, 0 failed")
    assert "q_diffusion/w4a4 skipped: not made for these bits" in err
    bench("run", "smoke")
    assert bench.log().count("cell q_diffusion/w4a4") == 1


def test_a_cell_over_its_time_is_a_timeout(bench):
    bench.behave(rtn__w4a4="hang")
    code, out, _ = bench("run", "smoke", "--timeout", "0.02")
    assert code == 1
    assert out.startswith("4 ok, 0 skipped, 0 failed, 1 timeout -> ")


def test_a_damaged_model_is_one_line_and_exit_code_2(bench):
    bench.behave(prepare="user")
    code, out, err = bench("run", "smoke")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "error: the model is damaged, fetch it again"
    assert bench.rows() == ()


def test_shared_stages_that_break_fail_their_cells(bench):
    bench.behave(prepare="raise")
    code, out, _ = bench("run", "smoke")
    assert code == 1
    assert out.startswith("0 ok, 0 skipped, 5 failed -> ")
    assert all(row.reason.startswith("shared stages: RuntimeError") for row in bench.rows())


def test_timing_that_fails_leaves_the_row_ok_with_a_warning(bench):
    bench.behave(time="raise")
    assert bench("run", "smoke")[0] == 0
    for row in bench.rows():
        assert row.latency is None
        assert row.warnings[0].startswith("latency was not measured: RuntimeError")
    cells = [line for line in bench.log() if line.startswith("cell")]
    bench("run", "smoke")
    assert [line for line in bench.log() if line.startswith("cell")] == cells


def test_results_of_another_budget_get_another_folder(bench):
    bench("run", "smoke")
    code, _, _ = bench("run", "smoke", "--images", "8")
    assert code == 0
    names = {path.name for path in bench.results.iterdir()} - {".cache", "smoke"}
    assert len(names) == 1
    assert names.pop().startswith("smoke-")


def test_a_choice_of_cells_joins_the_page_of_its_preset(bench):
    bench("run", "smoke", "--method", "rtn", "--bits", "W4A8")
    assert {(r.cell.method, r.cell.bits) for r in bench.rows()} == {("fp", "fp"), ("rtn", "w4a8")}
    assert bench("run", "smoke")[1].startswith("5 ok")
    assert bench.log().count("cell rtn/w4a8") == 1


def test_another_budget_under_the_same_name_is_refused(bench):
    bench("run", "smoke", "--name", "big")
    rows = bench.results / "big/rows"
    before = {path: path.read_bytes() for path in rows.glob("*.json")}
    for verb in ("run", "plan"):
        code, out, err = bench(verb, "smoke", "--images", "4", "--name", "big")
        assert (code, out) == (2, "")
        assert "holds 5 rows of another budget (images 16 there, 4 now)" in err
        assert "--force" in err
    assert {
        path: path.read_bytes() for path in (bench.results / "big/rows").glob("*.json")
    } == before
    assert bench("run", "smoke", "--images", "4", "--name", "big", "--force")[0] == 0
    assert {row.cell.budget.images for row in bench.rows("big")} == {4}
    assert len(list((rows / "earlier").glob("*.json"))) == 5


def test_rows_of_an_older_budget_leave_the_page(bench, monkeypatch):
    from dataclasses import replace

    from quantarena.bench.plan import presets

    bench("run", "smoke")
    old = presets.PRESETS["smoke"]
    grid = replace(old.grid, budget=replace(old.grid.budget, images=24))
    monkeypatch.setitem(presets.PRESETS, "smoke", replace(old, grid=grid))
    assert bench("run", "smoke")[0] == 2
    bench("run", "smoke", "--force")
    assert {row.cell.budget.images for row in bench.rows()} == {24}
    assert len(list((bench.results / "smoke/rows/earlier").glob("*.json"))) == 5


def test_changed_code_makes_its_rows_stale(bench, monkeypatch):
    from quantarena.bench.closure import Closure
    from quantarena.bench.plan import lookup

    bench("run", "smoke")
    known, changed = lookup._method_closure, Closure({"quantarena.methods.rtn": "new"}, {})
    monkeypatch.setattr(
        lookup,
        "_method_closure",
        lambda name, *rest: changed if name == "rtn" else known(name, *rest),
    )
    _, _, err = bench("run", "smoke")
    assert "2 of them again because code or model changed" in err
    assert bench.log().count("cell rtn/w4a8") == 2
    assert bench.log().count("cell q_diffusion/w4a8") == 1


def test_json_is_pure(bench):
    bench.behave(rtn__w4a4="raise")
    code, out, _ = bench("run", "smoke", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["counts"]["ok"] == 4
    assert len(document["rows"]) == 5
    assert document["page"].endswith("leaderboard.html")


def test_who_has_the_folder_alone_is_not_waited_for_long(bench, monkeypatch):
    from quantarena.bench import files
    from quantarena.bench.store import Store

    monkeypatch.setattr(files, "JOIN_SECONDS", 0.3)
    with Store(bench.results / "smoke").lock():
        code, out, err = bench("run", "smoke")
    assert (code, out) == (2, "")
    assert "another run is writing to" in err
    assert f"process {__import__('os').getpid()}" in err


def test_a_folder_that_cannot_be_written(bench):
    (bench.root / "file").write_text("in the way")
    code, _, err = bench("run", "smoke", "--results", str(bench.root / "file"), results=False)
    assert code == 2
    assert err.startswith("error: cannot write in ")
    assert "Not a directory" in err
    assert len(err.splitlines()) == 1


def test_a_full_disk_says_so_and_keeps_what_is_done(bench, monkeypatch):
    import errno

    from quantarena.bench import files

    real, calls = files.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    code, _, err = bench("run", "smoke")
    assert code == 2
    assert "No space left on device; free some space" in err
    monkeypatch.undo()
    kept = len(bench.rows())
    assert 0 < kept < 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "smok"), "unknown preset 'smok': did you mean smoke? (known: full,"),
        (("run", "--bits", "w0a8"), "bits 'w0a8': impossible weight width 0"),
        (("run", "--bits", "w4a99"), "bits 'w4a99': impossible activation width 99"),
        (("run", "--bits", "4/8"), "unknown bits '4/8': write w<weight>a<activation>"),
        (("run", "--workload", "emoji-t2j"), "did you mean emoji-t2i?"),
        (("run", "--images", "0"), "--images 0: it must be at least 1"),
        (("run", "--name", "../x"), "--name '../x': it names one folder"),
        (("run", "--executor", "rai"), "unknown executor 'rai': did you mean ray?"),
        (("run", "--plugin", "absent.py"), "plug-in absent.py is no file"),
        (("run", "--workers", "0"), "Invalid value for '--workers'"),
        (("run", "--colour"), "No such option: --colour"),
        (("run", "--workload", ""), "--workload is empty: give a value"),
        (("run", "--workload="), "--workload is empty: give a value"),
        (("run", "--method", "rtn,"), "--method: a name in it is empty"),
        (("run", "--name", ""), "--name is empty"),
        (("run", "--name", "n" * 300), "take at most 100 bytes"),
        (("run", "--variant", "nope"), "unknown variant 'nope': known: paper, release"),
        (("run", "--seed", str(2**63)), f"--seed {2**63}: it must be from 0 to {2**63 - 1}"),
        (("run", "--seed", "-1"), "--seed -1: it must be from 0"),
        (("run", "--timeout", "inf"), "--timeout inf: give minutes, at most"),
        (("run", "--timeout", "nan"), "Invalid value for '--timeout'"),
        (("run", "--images", str(10**400)), "--images: it must be at most 1,000,000,000"),
        (("run", "--plugin", "p" * 5000), "is no file"),
        (("run", "--method", "\udcff"), "an argument is no UTF-8 text"),
        (("run", "--set", "steps=5", "--set", "steps=6"), "--set steps is given twice"),
        (("run", "--workload", "emoji-t2i?eta=1&eta=0"), "eta is given twice: keep one"),
        (("rnu",), "No such command 'rnu'. Did you mean 'run'"),
        (("ls", "method"), "'method' is not one of"),
        (("show", "rtn@w4a4"), "no results in"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(bench, arguments, line):
    code, out, err = bench(*arguments, results=arguments[0] in ("run", "show"))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert line in err
    assert not (bench.results / "smoke").exists()


def test_unknown_method(bench):
    code, _, err = bench("run", "smoke", "--method", "rtm")
    assert code == 2
    assert "unknown method 'rtm': did you mean rtn?" in err


def test_a_plugin_that_raises_at_import(bench):
    plugin = bench.root / "mine.py"
    plugin.write_text("raise RuntimeError('broken on purpose')\n")
    code, _, err = bench("run", "smoke", "--plugin", str(plugin), "--method", "mine")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "fails to import: RuntimeError: broken on purpose" in err


def test_plan_names_the_policy_of_a_cell(bench):
    arguments = ("--method", "mixed_rtn", "--bits", "w4a8", "--policy", "budget")
    code, out, _ = bench("plan", "smoke", *arguments)
    assert code == 0
    assert "/mixed_rtn/w4a8/budget" in out
    code, _, err = bench("plan", "smoke", "--policy", "budgets")
    assert code == 2
    assert "unknown policy 'budgets': did you mean budget?" in err


def test_plan_says_what_a_run_would_do(bench):
    from quantarena.bench.plan.presets import PRESETS

    code, out, _ = bench("plan", "smoke")
    assert code == 0
    assert out.startswith("plan smoke: 5 cells (3 methods x w4a8, w4a4)\n")
    assert "MB of disk" in out
    cells = len(PRESETS["quick"].grid.cells())
    line = f"\n  next is quick: {cells} cells, 64 images, 128 points, 100 iterations, 1 seeds, "
    assert line in out
    assert "next is" not in bench("plan", "smoke", "--method", "rtn")[1]
    assert not (bench.results / "smoke").exists()
    bench("run", "smoke", "--method", "rtn")
    document = json.loads(bench("plan", "smoke", "--json")[1])
    assert (document["done"], document["to_run"]) == (3, 2)
    assert document["measured"] is True
    assert document["executor"] == "local"


def test_a_process_that_was_changed_for_good_does_no_more_cells(bench, monkeypatch):
    monkeypatch.setattr("quantarena.bench.process_state._lasting", {})
    bench.behave(rtn__w4a8="lasting")
    code, _, err = bench("run", "smoke", "--executor", "local")
    assert code == 0, err
    assert "a child process does the rest" in err
    marked = [row for row in bench.rows() if any("changed for good" in w for w in row.warnings)]
    assert [f"{row.cell.method}/{row.cell.bits}" for row in marked] == ["rtn/w4a8"]
    pids = [line.split()[-1] for line in (bench.cache / "log.txt").read_text().splitlines()]
    assert len(set(pids)) == 3  # this one, the child for cells, the child for timing


def test_a_failed_timing_is_tried_again_by_the_next_run(bench):
    bench.behave(time="raise")
    bench("run", "smoke")
    assert all(row.latency is None for row in bench.rows())
    bench("run", "smoke")
    assert all(len(row.warnings) == 1 for row in bench.rows())
    bench.behave()
    bench("run", "smoke")
    assert all(row.latency is not None for row in bench.rows())
    assert not any(row.warnings for row in bench.rows())


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_damaged_row_of_another_run_is_said_once_and_stays(bench, verb):
    bench("run", "smoke", "--name", "other")
    damaged = next((bench.results / "other/rows").glob("*.json"))
    damaged.write_text(damaged.read_text()[:50])
    before = damaged.read_bytes()
    code, _, err = bench(verb, "smoke")
    assert code == 0
    lines = [line for line in err.splitlines() if damaged.name in line]
    assert len(lines) == 1, err
    assert "is no intact row" in lines[0]
    assert "left out of the estimate" in lines[0]
    assert damaged.read_bytes() == before, "a run of that folder may need it"
    assert not (bench.results / "other/rows/aside").exists()
