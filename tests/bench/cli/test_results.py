import json

import pandas as pd
import pytest

import quantarena


@pytest.fixture
def done(bench):
    bench.behave(q_diffusion__w4a8="raise")
    bench("run", "smoke")
    return bench


def test_show_by_name_and_by_key(done):
    code, out, _ = done("show", "rtn@w4a4", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["cell"]["bits"] == "w4a4"
    assert document["file"].endswith(f"{document['key']}.json")
    assert json.loads(done("show", document["key"][:6], "--json")[1]) == document
    code, out, _ = done("show", "emoji-t2i/rtn@w4a4")
    assert code == 0
    assert "status: ok" in out.splitlines()


@pytest.mark.parametrize(
    ("name", "line"),
    [("rtn@w4a5", "no row 'rtn@w4a5': did you mean rtn@w4a"), ("ffff", "no row 'ffff'")],
)
def test_show_what_is_not_there(done, name, line):
    code, out, err = done("show", name)
    assert (code, out) == (2, "")
    assert line in err


def test_a_name_that_means_two_rows(done):
    done("run", "smoke", "--images", "8", "--method", "rtn")
    code, _, err = done("show", "rtn@w4a4")
    assert code == 2
    assert "'rtn@w4a4' means 2 rows" in err
    assert "--in" in err
    assert done("show", "rtn@w4a4", "--in", "smoke")[0] == 0


def test_compare_is_paired_and_says_who_is_better(done):
    code, out, _ = done("compare", "rtn@w4a8", "rtn@w4a4", "--json")
    assert code == 0
    found = {d["name"]: d for d in json.loads(out)["differences"]}["psnr"]
    assert 7 < found["low"] < found["mean"] < found["high"] < 11
    assert (found["n"], found["verdict"]) == (16, "A is better")
    code, out, _ = done("compare", "rtn@w4a4", "rtn@w4a8")
    assert "B is better" in out
    code, out, _ = done("compare", "rtn@w4a4", "rtn@w4a4")
    assert "no difference beyond the noise" in out


def test_compare_needs_two_scored_cells_of_one_run(done):
    code, _, err = done("compare", "rtn@w4a4", "q_diffusion@w4a8")
    assert code == 2
    assert "has no scores: failed" in err
    done("run", "smoke", "--images", "8", "--method", "rtn")
    other = next(p.name for p in done.results.iterdir() if p.name.startswith("smoke-"))
    rows = {r.cell.label: r.key for r in done.rows(other)}
    code, _, err = done("compare", "rtn@w4a8", rows["emoji-t2i/rtn/w4a4"])
    assert code == 2


def test_compare_without_its_scores_file(done):
    for path in (done.results / "smoke/scores").iterdir():
        path.write_bytes(b"not a zip")
    code, _, err = done("compare", "rtn@w4a4", "rtn@w4a8")
    assert code == 2
    assert "cannot be read" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("form", ["csv", "parquet", "latex", "md"])
def test_export(done, real_page, form):
    code, out, err = done("export", form, "smoke", "-o", str(done.root / "tables"))
    assert code == 0, err
    path = out.strip()
    if form in ("csv", "parquet"):
        frame = pd.read_csv(path) if form == "csv" else pd.read_parquet(path)
        assert len(frame) == 5
        assert set(frame["status"]) == {"ok", "failed"}
    else:
        with open(path) as stream:
            text = stream.read()
        assert text.count("rtn") == 2
        assert r"q\_diffusion" in text if form == "latex" else "| q_diffusion |" in text
        assert "failed" in text


def test_rank_and_render_by_themselves(done, real_page):
    code, out, err = done("rank", "smoke", "--json")
    assert code == 0, err
    assert json.loads(out)["boards"]
    assert (done.results / "smoke/ranking.json").is_file()
    code, out, _ = done("render", "smoke")
    assert code == 0
    page = (done.results / "smoke/leaderboard.html").read_text()
    assert "q_diffusion" in page


@pytest.mark.parametrize("verb", ["rank", "render"])
def test_results_that_are_not_there(done, verb):
    code, _, err = done(verb, "smoek")
    assert code == 2
    assert "did you mean smoke?" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["workloads", "metrics", "presets"])
def test_listings(bench, kind):
    code, out, _ = bench("ls", kind, "--json", results=False)
    assert code == 0
    rows = json.loads(out)
    assert all("name" in row for row in rows)
    code, out, _ = bench("ls", kind, results=False)
    assert all(row["name"] in out for row in rows)


def test_methods_are_listed_with_plugins(bench):
    names = {row["name"] for row in json.loads(bench("ls", "methods", "--json", results=False)[1])}
    assert {"fp", "rtn", "q_diffusion"} <= names


def test_methods_are_listed_with_the_policies_that_they_run_under(bench):
    rows = json.loads(bench("ls", "methods", "--json", results=False)[1])
    policies = {row["name"]: row["policies"] for row in rows}
    assert policies["rtn"] == "uniform"
    assert policies["mixed_rtn"] == "uniform,budget"
    assert policies["serial_to_parallel"] == policies["vidit_q"] == "uniform,budget,published"
    assert policies["dgq"] == "uniform,published"


def test_doctor_finds_the_ground_solid(bench):
    code, out, _ = bench("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert {"processor", "memory", "torch", "ray", "compiler", "kernels", "disk"} <= set(checks)
    assert [c for c in checks.values() if c["state"] == "broken"] == []
    assert code == 0


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--help"), ("ls", "--help")])
def test_help(bench, arguments):
    code, out, _ = bench(*arguments, results=False)
    assert code == 0
    assert "Usage: " in out


def test_version(bench):
    code, out, _ = bench("--version", results=False)
    assert (code, out) == (0, f"quantarena {quantarena.__version__}\n")
