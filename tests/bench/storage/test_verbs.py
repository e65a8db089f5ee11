"""Where ``merge``, ``submit`` and ``verify`` read and write: folders, URLs, places that refuse."""

import os
import shlex
import time
from pathlib import Path

import pytest

from quantarena.bench.cli.common import run_names
from quantarena.bench.storage.remote import mirror, open_remote


@pytest.fixture
def url(tmp_path, monkeypatch):
    """An empty store with characters that are wildcards elsewhere."""
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    return f"file://{tmp_path}/store [v2]"


def ran(bench, url):
    """A run on a store, of which this machine's mirror is lost."""
    code, out, err = bench("run", "smoke", "--results", url, results=False)
    assert code == 0, err
    return out


def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "elsewhere"))


def one_line(err):
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_submit_takes_the_url_of_a_run_with_its_pictures(bench, url, tmp_path, monkeypatch):
    ran(bench, url)
    elsewhere(monkeypatch, tmp_path)
    code, out, err = bench("submit", f"{url}/smoke", "-o", str(tmp_path / "sent"), results=False)
    assert code == 0, err
    assert out.startswith("5 rows, ")
    sent = tmp_path / "sent"
    assert len(list((sent / "images").iterdir())) == len(list((sent / "scores").iterdir())) == 5


def test_merge_takes_the_url_of_a_run(bench, url, tmp_path, monkeypatch):
    """It gets as far as it does for the folder itself, and names the run by the URL's end."""
    ran(bench, url)
    said = {}
    for name, source in (("url", f"{url}/smoke"), ("folder", str(mirror(url) / "smoke"))):
        elsewhere(monkeypatch, tmp_path) if name == "url" else None
        said[name] = bench("merge", source, "-o", str(tmp_path / name), results=False)
        monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    assert said["url"] == said["folder"]
    assert "holds no results" not in said["url"][2]


def test_two_stores_with_a_run_of_one_name_are_told_apart(tmp_path, url):
    from quantarena.bench.share.merge import _names

    folders = [mirror(f"file://{tmp_path}/{name}") / "smoke" for name in ("one", "two")]
    assert _names(folders) == ["one/smoke", "two/smoke"]


@pytest.mark.parametrize("verb", ["merge", "submit"])
def test_sources_behind_urls_that_are_no_runs(bench, url, verb, tmp_path):
    def refused(source):
        code, _, err = bench(verb, source, "-o", str(tmp_path / "out"), results=False)
        assert code == 2
        assert not (tmp_path / "out").exists()
        return one_line(err)

    assert "does not exist or cannot be reached" in refused(f"{url}/smoke")
    assert url in refused(f"{url}/smoke")
    open_remote(url).push("sent/manifest.json", b"{}")
    assert "is a submission, no run: copy" in refused(f"{url}/sent")
    assert f"no results in {url}/smoke" in refused(f"{url}/smoke")
    assert "names no run" in refused("file:///smoke")


def test_verify_refuses_a_url(bench, url):
    code, _, err = bench("verify", f"{url}/sent", results=False)
    assert code == 2
    assert "copy the submission to a folder of this machine" in one_line(err)


@pytest.mark.parametrize("verb", ["merge", "submit"])
@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("s3://bucket/all", "it must be a folder of this machine"),
        ("/proc/x", "choose a writable place with -o"),
        (".", "you are in this folder"),
        ("..", "you are in this folder"),
        ("file/x", "choose a writable place with -o"),
    ],
)
def test_places_that_cannot_be_written(bench, verb, out, line, tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    Path("file").write_text("")
    code, _, err = bench(verb, "run", "-o", out, results=False)
    assert code == 2
    assert line in one_line(err)
    assert "--results" not in err
    assert os.listdir() == ["file"]


def test_the_hint_of_submit_is_no_option(bench, tmp_path, monkeypatch):
    assert bench("run", "smoke")[0] == 0
    monkeypatch.chdir(tmp_path)
    code, out, err = bench("submit", "smoke", "-o", "./-x")
    assert code == 0, err
    hint = shlex.split(out.strip().rpartition("quantarena ")[2])
    assert hint[0] == "verify"
    code, out, err = bench(*hint, results=False)
    assert "refused" in out or "accepted" in out, err


def test_status_and_run_name_the_url(bench, url):
    out = ran(bench, url)
    assert f" -> {url}/smoke (to open the page here: {mirror(url) / 'smoke'}/leader" in out
    for where in (("smoke", "--results", url), (f"{url}/smoke",)):
        code, out, _ = bench("status", *where, results=False)
        assert code == 0
        assert out.startswith(f"{url}/smoke: complete")


@pytest.mark.parametrize("verb", ["run", "status", "render", "rank", "show"])
@pytest.mark.parametrize("store", ["file", "s3"])
def test_a_store_that_is_not_there(bench, verb, store, tmp_path, monkeypatch, request):
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    if store == "s3":
        request.getfixturevalue("s3")
    elif verb == "run":
        pytest.skip("a run makes the folder")
    place = "s3://no-such-bucket/r" if store == "s3" else f"file://{tmp_path}/none"
    code, _, err = bench(verb, "smoke", "--results", place, results=False)
    assert code == 2
    assert f"{place} does not exist or cannot be reached" in err
    assert "nothing was run here yet" not in err


def test_a_store_without_runs_is_no_missing_one(bench, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    place = f"{s3}/empty-{time.monotonic_ns()}"
    code, _, err = bench("render", "smoke", "--results", place, results=False)
    assert code == 2
    assert f"no results in {place}/smoke: nothing was run here yet" in one_line(err)


def test_unfinished_work_is_no_run(tmp_path):
    for name in ("all", ".all-6ohou_8m.work"):
        (tmp_path / name / "rows").mkdir(parents=True)
    assert run_names(tmp_path) == ("all",)
