"""A joined folder is replaced as a whole: nothing that somebody finished may be lost with it."""

import json
import shutil
from dataclasses import asdict

import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.share.merge import merge
from quantarena.bench.share.place import require_unjoined, taken
from quantarena.bench.storage.drivers import FINISHED, new_driver
from quantarena.bench.store import Store


def joined(world, *names):
    return merge([world / name for name in names], world / "out", title="t", command="c")


@pytest.fixture
def out(world):
    """A joined folder."""
    joined(world, "one")
    return world / "out"


def note(folder, **changes):
    """Write the note of a driver."""
    document = asdict(new_driver("quantarena run", 1)) | changes
    (folder / "drivers").mkdir()
    (folder / "drivers" / "host-1-a.json").write_text(json.dumps(document))


def test_a_run_in_a_joined_folder_is_refused(out, world):
    with pytest.raises(UserError, match=r"joins results of several folders.*another --name"):
        require_unjoined(out)
    require_unjoined(world / "one")


def test_the_verbs_say_so_in_one_line(bench):
    code, _, _ = bench("run", "smoke")
    assert code == 0
    folder = bench.results / "smoke"
    (folder / "merged.json").write_text("{}")
    before = sorted(path.name for path in (folder / "rows").iterdir())
    for verb in (("run", "smoke", "--force"), ("run", "smoke"), ("plan", "smoke")):
        code, _, err = bench(*verb)
        assert code == 2
        assert err.count("joins results of several folders") == 1
        assert "Traceback" not in err
    assert sorted(path.name for path in (folder / "rows").iterdir()) == before


@pytest.mark.parametrize("place", ["rows/0123456789abcdef.json", "rows/earlier/x.1.json"])
def test_rows_that_no_merge_wrote_are_kept(out, world, place):
    (out / place).parent.mkdir(exist_ok=True)
    (out / place).write_text("{}")
    with pytest.raises(UserError, match=f"holds {place}, which no merge wrote"):
        joined(world, "one")
    assert (out / place).is_file()


@pytest.mark.parametrize("name", ["votes.sqlite", "thesis.tex"])
def test_other_files_are_kept(out, world, name):
    (out / name).write_text("years")
    with pytest.raises(UserError, match=f"holds {name}, which no merge wrote"):
        joined(world, "one")
    assert (out / name).read_text() == "years"


def test_a_driver_that_works_there_is_waited_for(out, world):
    note(out)
    with pytest.raises(UserError, match=r"process \d+ on .* works in .*out: wait for it"):
        joined(world, "one")
    shutil.rmtree(out / "drivers")
    note(out, state=FINISHED)
    with pytest.raises(UserError, match="holds drivers, which no merge wrote"):
        joined(world, "one")


def test_a_damaged_list_of_what_was_joined_protects_all(out, world):
    (out / "merged.json").write_text("{")
    with pytest.raises(UserError, match="cannot be replaced"):
        joined(world, "one")
    assert len(Store(out).rows()) == 3


def test_who_has_the_lock_is_not_taken_from(world):
    for place in ("out", "new"):
        folder = world / place
        if place == "out":
            joined(world, "one")
        with (
            Store(folder).lock(),
            pytest.raises(UserError, match=r"another run is writing .* another folder with -o"),
        ):
            merge([world / "one"], folder, title="t", command="c")
        assert folder.is_dir()


def test_a_run_that_ends_while_rows_are_checked_is_kept(world, monkeypatch):
    """The place was free when the merge began."""
    import quantarena.bench.share.merge as module

    def slow(candidates):
        shutil.copytree(world / "one", world / "out")
        return {}

    monkeypatch.setattr(module, "other_settings", slow)
    with pytest.raises(UserError, match="holds something else"):
        joined(world, "two")
    assert len(Store(world / "out").rows()) == 3


def test_a_merge_that_fails_leaves_no_folder(world):
    with pytest.raises(ZeroDivisionError), taken(world / "out"):
        raise ZeroDivisionError
    assert not (world / "out").exists()
    with taken(world / "out"):
        pass
    joined(world, "one")  # what holds a lock file alone is empty
    assert len(Store(world / "out").rows()) == 3


def test_submit_asks_the_store_for_rows(bench, tmp_path, monkeypatch):
    """A machine that never ran has an empty mirror."""
    where = ("--results", "memory://submitted")
    assert bench("run", "smoke", *where, results=False)[0] == 0
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "another machine"))
    asked = ("submit", "smoke", "-o", str(tmp_path / "sent"), *where)
    code, out, err = bench(*asked, results=False)
    assert (code, err) == (0, "")
    assert out.startswith("5 rows")
