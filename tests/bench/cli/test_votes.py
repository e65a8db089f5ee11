"""The verbs of the arena: each as a user types it, and its mistakes in one line."""

import contextlib
import importlib.util
import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from quantarena.bench.cli import run

ROOT = Path(__file__).parent.parent.parent.parent


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load_tool():
    return loaded(ROOT / "tests" / "tools" / "arena_load.py")


@pytest.fixture(scope="module")
def folder(load_tool, tmp_path_factory):
    return load_tool.synthetic(tmp_path_factory.mktemp("arena") / "results")


@pytest.fixture
def cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(word) for word in arguments])
        return code, out.getvalue(), err.getvalue()

    return call


@pytest.fixture(scope="module")
def judged(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "v.sqlite"
    out = io.StringIO()
    words = ["votes", "judge", str(folder), "pixels", "--votes", "12", "--log", str(path)]
    with contextlib.redirect_stdout(out):
        assert run(words) == 0
    assert out.getvalue() == f"pixels/1: 12 votes in {path}\n"
    return path


@pytest.fixture
def log(judged, tmp_path):
    return shutil.copy(judged, tmp_path / "v.sqlite")


def test_a_program_judges_and_goes_on(cli, folder, log):
    code, out, _ = cli("votes", "judge", folder, "pixels", "--votes", 15, "--log", log, "--json")
    assert (code, json.loads(out)["votes"]) == (0, 15)
    assert len(cli("votes", "export", log)[1].splitlines()) == 15


def test_export_import_merge_and_replay_give_equal_bytes(cli, log):
    assert cli("votes", "export", log, "-o", "v.jsonl")[:2] == (0, "v.jsonl: 12 events\n")
    assert cli("votes", "import", "w.sqlite", "v.jsonl")[1] == "w.sqlite: 12 new of 12 events\n"
    assert cli("votes", "import", "w.sqlite", "v.jsonl")[1] == "w.sqlite: 0 new of 12 events\n"
    assert cli("votes", "merge", "all.jsonl", "w.sqlite", log)[0] == 0
    assert cli("votes", "merge", "all.sqlite", "all.jsonl", log)[0] == 0
    assert Path("all.jsonl").read_bytes() == Path("v.jsonl").read_bytes()
    boards = [
        cli("votes", "replay", name, "--judges", "automatic", "--json")[1]
        for name in (log, "v.jsonl", "w.sqlite", "all.sqlite")
    ]
    assert len(set(boards)) == 1
    assert sum(board["votes"] for board in json.loads(boards[0])) == 12
    plain = json.loads(cli("votes", "export", "v.jsonl", "--json")[1])
    assert [json.dumps(event, sort_keys=True, separators=(",", ":")) for event in plain] == (
        Path("v.jsonl").read_text().splitlines()
    )


def test_an_export_fits_the_schema_that_is_shown(cli, log):
    shown = json.loads(cli("votes", "schema")[1])
    assert shown == json.loads(cli("votes", "schema", "--json")[1])
    for line in cli("votes", "export", log)[1].splitlines():
        jsonschema.validate(json.loads(line), shown)


def test_the_log_of_a_results_folder_is_found_by_the_folder(cli, folder):
    assert cli("votes", "judge", folder, "pixels", "--votes", 3)[0] == 0
    assert (folder / "votes.sqlite").is_file()
    assert len(cli("votes", "export", folder)[1].splitlines()) == 3


def test_replay_in_words(cli, log):
    code, out, _ = cli("votes", "replay", log, "--judges", "automatic", "--corrected")
    assert code == 0
    counts = re.findall(r"fidelity: (\d+) votes of 1 judge, (\d+) views, by joint-1", out)
    assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [12, 48]
    assert "corrected by programs" in out
    code, out, _ = cli("votes", "replay", log)
    assert "0 votes of 0 judges, 0 views" in out
    assert re.search(r"left out: \d automatic judges", out)


def test_quality_in_words_and_as_json(cli, log):
    code, out, _ = cli("votes", "quality", log)
    assert code == 0
    assert "pixels/1" in out
    (judge,) = json.loads(cli("votes", "quality", log, "--json")[1])
    assert (judge["votes"], judge["kind"]) == (12, "automatic")


def test_votes_are_taken_back_by_a_later_event(cli, log):
    first = json.loads(cli("votes", "export", log)[1].splitlines()[0])
    code, out, _ = cli("votes", "void", log, first["id"], "--reason", "a test")
    assert (code, out) == (0, "1 vote taken back\n")
    lines = [json.loads(line) for line in cli("votes", "export", log)[1].splitlines()]
    assert len(lines) == 13
    assert lines[-1]["reason"] == "a test"
    boards = json.loads(cli("votes", "replay", log, "--judges", "automatic", "--json")[1])
    assert sum(board["votes"] for board in boards) == 11


def test_mistakes_are_one_line(cli, folder, log, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("hello\n")
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE t (x)")
    for words, said in [
        (("vote", "nowhere"), "no results in"),
        (("vote", folder, "--workload", "none"), "nothing to vote on"),
        (("vote", folder, "--log", "other.sqlite"), "another program"),
        (("vote", folder, "--host", "no-such.invalid", "--log", "x.sqlite"), "cannot listen"),
        (("vote", folder, "--task", "beauty"), "--task"),
        (("vote", folder, "--k", "9"), "--k"),
        (("votes", "export", "none.sqlite"), "no votes in none.sqlite"),
        (("votes", "import", "new.sqlite", text), "line 1: no event"),
        (("votes", "merge", log, log), "there already"),
        (("votes", "void", log, "x", "--reason", "y"), "no vote x"),
        (("votes", "judge", folder, "nobody", "--log", log), "no judge 'nobody'"),
        (("votes", "judge", folder, "pixels", "--task", "preference", "--log", "y.sqlite"),
         "pixels compares with the reference"),
    ]:  # fmt: skip
        code, out, err = cli(*words)
        assert code in (1, 2), words
        assert out == "", words
        assert said in err, (words, err)
        assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "new.sqlite").exists() or cli("votes", "export", "new.sqlite")[1] == "\n"


def test_without_its_libraries_vote_says_how_to_get_them(cli, folder, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name)
    )
    code, _, err = cli("vote", folder)
    assert code == 2
    assert err == "error: vote needs uvicorn: pip install 'quantarena[arena]'\n"


def test_the_log_needs_no_web_library():
    code = (
        "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None\n"
        "from quantarena.leaderboard.arena import judges, quality, replay, sets, transfer\n"
        "from quantarena.bench.cli import votes"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vote_serves_until_it_is_told_to_stop(load_tool, folder, tmp_path):
    pytest.importorskip("uvicorn", reason="the extra arena is not installed")
    server = load_tool.Server(folder, tmp_path / "v.sqlite", extra=("--k", "3"))
    voter = load_tool.Voter(server.netloc)
    issued = voter.set()[1]
    assert len(issued["images"]) == 3
    assert voter.vote(issued)[0] == 200
    assert server.stop() == 0


@pytest.mark.slow
def test_ten_kills_lose_nothing(load_tool, folder, tmp_path):
    """tests/tools/arena_load.py does the same two hundred times."""
    pytest.importorskip("uvicorn", reason="the extra arena is not installed")
    found = load_tool.kills(folder, tmp_path / "v.sqlite", 10)
    assert found["promised"] == 30
    assert (found["lost"], found["double"], found["strange"]) == (0, 0, 0)
    assert found["integrity"] == "ok"


@pytest.mark.slow
def test_fifty_voters_at_once(load_tool, folder, tmp_path):
    """Every vote that was answered for is there; how many a second the tool reports."""
    pytest.importorskip("uvicorn", reason="the extra arena is not installed")
    found = load_tool.voters(folder, tmp_path / "v.sqlite", 50, 3)
    assert found["stored"] == found["votes"] > 50
