"""Results behind a URL: file:// and memory:// always, S3 where moto and s3fs are installed."""

import time
from dataclasses import replace

import pytest

from quantarena.bench.cache import StageCache, sharing
from quantarena.bench.errors import UserError
from quantarena.bench.run.runner import Run
from quantarena.bench.storage.leases import Leases
from quantarena.bench.storage.remote import mirror, open_remote, remote_of
from quantarena.bench.storage.stages import SharedStages
from quantarena.bench.storage.sync import RunSync, sync_of
from quantarena.bench.store import Store, signed_text


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path, monkeypatch):
    """An empty store, and a cache of its own for the mirrors of this machine."""
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    name = f"store-{time.monotonic_ns()}"
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{name}"
    return f"memory://{name}" if request.param == "memory" else f"file://{tmp_path}/{name}"


def elsewhere(monkeypatch, tmp_path):
    """From now on this is another machine: its mirrors are empty."""
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "elsewhere"))


def test_objects_are_whole_and_listed_by_their_marks(url):
    remote = open_remote(url)
    assert remote.fetch("a/b.json") is None
    assert remote.listing("a") == {}
    remote.push("a/b.json", b"1")
    first = remote.listing("a")
    assert list(first) == ["b.json"]
    time.sleep(0.02)
    remote.push("a/b.json", b"22")
    assert remote.fetch("a/b.json") == b"22"
    assert remote.listing("a") != first
    remote.push("a/c.json", b"3")
    asked = ["a/b.json", "a/none.json", "a/c.json"]
    assert remote.fetch_many(asked) == {"a/b.json": b"22", "a/c.json": b"3"}
    assert remote.fetch_many(asked[:1]) == {"a/b.json": b"22"}
    assert remote.fetch_many([]) == {}
    remote.forget("a/b.json")
    remote.forget("a/b.json")
    assert list(remote.listing("a")) == ["c.json"]


@pytest.mark.parametrize("name", ["runs [v2]", "a*b", "run?x=1", "[!a]**{1,2}"])
def test_names_with_wildcards_are_names(url, name, tmp_path):
    """Also beside folders that the wildcards would match."""
    place = f"{url}/{name}"
    remote = open_remote(place)
    for other in ("runs v", "aXb", "runXx=1"):
        open_remote(f"{url}/{other}").push("smoke/rows/1.json", b"of another store")
    assert remote.fetch_many(["smoke/rows/1.json"]) == {}
    asked = ["smoke/rows/1.json", "smoke/rows/none.json", "smoke/rows/[2]*?.json"]
    for number in (0, 2):
        remote.push(asked[number], b"%d" % number)
    assert set(remote.listing("smoke/rows")) == {"1.json", "[2]*?.json"}
    assert remote.fetch_many(asked) == {asked[0]: b"0", asked[2]: b"2"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0000.png").write_text("picture")
    remote.push_folder(tmp_path / "folder", "smoke/images/1")
    assert remote.fetch_folder("smoke/images/1", tmp_path / "copy")
    assert (tmp_path / "copy" / "0000.png").read_text() == "picture"
    lease = Leases(remote.shelf("smoke/.leases"), seconds=0.6).take("cell")
    assert lease is not None
    assert remote.shelf("smoke/.leases").names() != []
    remote.forget(asked[0])
    remote.forget_folder("smoke/images/1")
    assert list(remote.listing("smoke/rows")) == ["[2]*?.json"]
    assert remote.listing("smoke/images") == {}
    assert len(open_remote(f"{url}/aXb").listing("smoke/rows")) == 1


def test_a_run_on_a_url_with_wildcards(bench, url, tmp_path, monkeypatch):
    where = ("--results", f"{url}/runs [v2]?*")
    code, out, err = bench("run", "smoke", *where, results=False)
    assert code == 0, err
    elsewhere(monkeypatch, tmp_path)
    code, out, err = bench("status", f"{where[1]}/smoke", results=False)
    assert code == 0, err
    assert "complete, 5 of 5 cells" in out
    code, out, err = bench("run", "smoke", *where, results=False)
    assert code == 0, err
    assert "nothing to run" in err


def test_objects_are_asked_for_together(url, monkeypatch):
    """Of an object store many at once: one after the other would wait for each answer."""
    remote = open_remote(url)
    if not getattr(remote.system, "async_impl", False):
        pytest.skip("this file system answers one call at a time")
    names = [f"rows/{number}.json" for number in range(30)]
    for name in names:
        remote.push(name, name.encode())
    waiting, most = [0], [0]
    cat_file = type(remote.system)._cat_file

    async def counted(self, *args, **kwargs):
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        try:
            return await cat_file(self, *args, **kwargs)
        finally:
            waiting[0] -= 1

    monkeypatch.setattr(type(remote.system), "_cat_file", counted)
    assert remote.fetch_many(names) == {name: name.encode() for name in names}
    assert most[0] >= 10


def test_leases_on_the_store(url):
    one, other = (Leases(open_remote(url).shelf("run/.leases"), seconds=0.6) for _ in range(2))
    one.shelf.require_conditions()
    lease = one.take("cell")
    assert other.take("cell") is None
    time.sleep(1.0)
    assert other.take("cell") is None  # it beats
    one.release(lease)
    taken = other.take("cell")
    assert taken is not None
    other.release(taken)
    assert other.shelf.names() == []


def test_an_entry_is_made_once_and_comes_from_the_store_elsewhere(url, tmp_path, monkeypatch):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "value").write_text("x" * 1000)

    here = mirror(url)
    with sharing(SharedStages(here / ".cache", remote_of(here))):
        StageCache(here / ".cache").get("stage", "key", make)
    elsewhere(monkeypatch, tmp_path)
    there = mirror(url)
    assert there != here
    with sharing(SharedStages(there / ".cache", remote_of(there))):
        entry = StageCache(there / ".cache").get("stage", "key", make)
    assert len(made) == 1
    assert (entry / "deep" / "value").read_text() == "x" * 1000
    assert (entry / ".made.json").is_file()
    remote = open_remote(url)
    assert list(remote.listing(".cache")) == ["stage-key.tar"]
    # a damaged object is made again
    remote.push(".cache/stage-key.tar", b"half of it")
    StageCache(there / ".cache").drop("stage", "key")
    with sharing(SharedStages(there / ".cache", remote_of(there))):
        StageCache(there / ".cache").get("stage", "key", make)
    assert len(made) == 2


def test_an_entry_whose_copy_failed_goes_up_when_it_is_used_again(url, monkeypatch):
    here, remote = mirror(url), open_remote(url)

    def get():
        with sharing(SharedStages(here / ".cache", remote_of(here))):
            return StageCache(here / ".cache").get("stage", "key", lambda f: made.append(f))

    def fail(self, *given):
        raise UserError("cannot write: the store is gone")

    made = []
    with monkeypatch.context() as patched:
        patched.setattr(type(remote), "push_folder", fail)
        with pytest.raises(UserError, match="the store is gone"):
            get()
    assert remote.listing(".cache") == {}
    get()
    assert list(remote.listing(".cache")) == ["stage-key.tar"]
    assert len(made) == 1


def test_a_run_on_a_url_and_its_results_elsewhere(bench, url, tmp_path, monkeypatch):
    where = ("--results", url)
    code, out, err = bench("run", "smoke", *where, results=False)
    assert code == 0, err
    assert out.startswith("5 ok")
    remote = open_remote(url)
    assert len(remote.listing("smoke/rows")) == 5
    assert {"plan.json", "leaderboard.html"} <= set(remote.listing("smoke"))
    assert len(remote.listing("smoke/images")) == len(remote.listing("smoke/scores")) == 5
    assert remote.listing("smoke/.leases") == {}
    rows = {row.key: row for row in Store(mirror(url) / "smoke").rows()}
    assert all(row.latency for row in rows.values())

    elsewhere(monkeypatch, tmp_path)
    code, out, _ = bench("status", "smoke", *where, results=False)
    assert code == 0
    assert "complete, 5 of 5 cells" in out
    code, out, _ = bench("plan", "smoke", *where, results=False)
    assert "5 done, 0 to run" in out
    code, out, err = bench("run", "smoke", *where, results=False)
    assert code == 0, err
    assert "nothing to run" in err
    there = mirror(url) / "smoke"
    assert {row.key: row for row in Store(there).rows()} == rows
    key = next(iter(rows))
    assert len(list((there / "images" / key).glob("*.png"))) == 4
    assert [path.name for path in there.iterdir() if path.name.endswith(".work")] == []
    assert bench("show", key[:8], *where, results=False)[0] == 0


def test_rows_that_are_missing_run_and_go_up(bench, url, tmp_path, monkeypatch):
    where = ("--results", url)
    bench("run", "smoke", "--bits", "w4a8", *where, results=False)
    before = set(open_remote(url).listing("smoke/rows"))
    elsewhere(monkeypatch, tmp_path)
    code, _, err = bench("run", "smoke", *where, results=False)
    assert code == 0, err
    assert f"{len(before)} done, {5 - len(before)} to run" in err
    after = set(open_remote(url).listing("smoke/rows"))
    assert before < after
    assert len(after) == 5
    # the first machine sees them
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    assert "5 of 5 cells" in bench("status", "smoke", *where, results=False)[1]


def test_a_row_whose_pictures_are_not_there_yet_is_not_seen(bench, url, monkeypatch):
    """The store fails at the row: pictures are up, the row is not, and the next run goes on."""
    push = RunSync._push_file

    def fail(self, name):
        if name.startswith("rows/"):
            raise UserError("cannot write: the store is gone")
        push(self, name)

    monkeypatch.setattr(RunSync, "_push_file", fail)
    code, _, err = bench("run", "smoke", "--results", url, results=False)
    assert code == 2
    assert "the store is gone" in err
    assert open_remote(url).listing("smoke/rows") == {}
    monkeypatch.setattr(RunSync, "_push_file", push)
    code, out, _ = bench("run", "smoke", "--results", url, results=False)
    assert (code, out[:4]) == (0, "5 ok")
    assert len(open_remote(url).listing("smoke/rows")) == 5


def test_pictures_of_a_row_that_was_made_again_come_down_again(bench, url, tmp_path, monkeypatch):
    where = ("--results", url)
    bench("run", "smoke", *where, results=False)
    here = mirror(url) / "smoke"
    row = next(row for row in Store(here).rows() if row.cell.method != "fp")
    files = [here / row.artefacts["scores"], here / row.artefacts["images"] / "0000.png"]
    before = [file.read_bytes() for file in files]

    elsewhere(monkeypatch, tmp_path)
    import fake_stages

    monkeypatch.setitem(fake_stages.QUALITY, row.cell.bits, 60.0)
    code, _, err = bench("run", "smoke", "--force", *where, results=False)
    assert code == 0, err
    there = mirror(url) / "smoke"
    made = [there / file.relative_to(here) for file in files]
    assert made[0].read_bytes() != before[0]

    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
    assert bench("run", "smoke", *where, results=False)[0] == 0
    assert Store(here).get(row.key).attempt == 2
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in made]


def test_a_row_of_others_names_no_places_outside(bench, url, tmp_path, monkeypatch):
    where = ("--results", url)
    bench("run", "smoke", *where, results=False)
    row = Store(mirror(url) / "smoke").rows()[0]
    remote = open_remote(url)
    places = {"images": "../../../pwned", "scores": "../../../pwned.npz"}
    forged = replace(row, artefacts=row.artefacts | places)
    remote.push(f"smoke/rows/{row.key}.json", signed_text(forged).encode())
    remote.push_folder(mirror(url) / "smoke" / "images" / row.key, "smoke/../../../pwned")
    elsewhere(monkeypatch, tmp_path)
    bench("show", row.key[:8], *where, results=False)
    assert not [path for path in (tmp_path / "elsewhere").rglob("*pwned*")]


def test_a_store_that_lost_its_rows_gets_them_back(bench, url):
    where = ("--results", url)
    bench("run", "smoke", *where, results=False)
    remote = open_remote(url)
    remote.system.rm(remote.root, recursive=True)
    code, out, _ = bench("run", "smoke", *where, results=False)
    assert (code, out[:4]) == (0, "5 ok")
    assert len(remote.listing("smoke/rows")) == 5
    assert len(remote.listing("smoke/images")) == len(remote.listing("smoke/scores")) == 5
    assert {"plan.json", "leaderboard.html"} <= set(remote.listing("smoke"))


def test_what_another_finished_since_the_plan_is_not_done_again(bench, url, tmp_path, monkeypatch):
    """Nor overwritten: the shared stages of the second driver fail."""
    where = ("--results", url)
    execute, first = Run.execute, [True]

    def late(self):
        if first:
            first.clear()
            elsewhere(monkeypatch, tmp_path)
            assert bench("run", "smoke", *where, results=False)[0] == 0
            monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "here"))
            (self.options.cache / "behaviour.json").write_text('{"prepare": "raise"}')
        execute(self)

    monkeypatch.setattr(Run, "execute", late)
    code, out, err = bench("run", "smoke", *where, results=False)
    assert (code, out[:4]) == (0, "5 ok"), err
    for machine in ("here", "elsewhere"):
        monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / machine))
        folder = mirror(url) / "smoke"
        assert [(row.status, row.attempt) for row in Store(folder).rows()] == [("ok", 1)] * 5
        assert not list((folder / "rows" / "earlier").glob("*"))


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("nonsense://x/y", "nonsense"),
        ("s3://", "name a bucket or a folder"),
        ("memory:///", "name a bucket or a folder"),
    ],
)
def test_urls_that_name_no_store(bench, url, line):
    code, _, err = bench("plan", "smoke", "--results", url, results=False)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


def test_a_library_that_is_missing_is_named_with_its_extra(bench, monkeypatch):
    def absent(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    code, _, err = bench("plan", "smoke", "--results", "s3://bucket/x", results=False)
    assert code == 2
    assert "pip install 'quantarena[s3]'" in err


def test_a_folder_is_no_mirror(tmp_path):
    assert sync_of(tmp_path / "smoke") is None
