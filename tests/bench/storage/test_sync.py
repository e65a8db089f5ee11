"""A store and two mirrors of it that differ: what is taken over, what is kept, what goes up."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.storage.remote import mirror, open_remote
from quantarena.bench.storage.sync import KNOWN, RunSync
from quantarena.bench.store import Store, parse_row, signed_text

ROWS = tuple(
    Row(Cell("emoji-t2i", "rtn", bits), Status.OK, finished="2026-01-01T10:00:00+00:00")
    for bits in ("w4a8", "w8a8", "w6a8")
)
KEYS = [row.key for row in ROWS]


class Machine:
    """A machine with a mirror of its own."""

    def __init__(self, monkeypatch, cache: Path, url: str) -> None:
        monkeypatch.setenv("QUANTARENA_CACHE", str(cache))
        self.folder = mirror(url) / "smoke"
        self.store = Store(self.folder)
        self.remote = open_remote(url)
        self.lines: list[str] = []

    def sync(self) -> RunSync:
        return RunSync(self.remote, self.folder, self.lines.append)

    def pull(self) -> None:
        self.sync().pull()

    def push(self) -> None:
        self.sync().push_changed()

    def put(self, row: Row, *, picture: str = "") -> Row:
        """A row that was made here, and did not go up."""
        place = f"images/{row.key}"
        if picture:
            (self.folder / place).mkdir(parents=True, exist_ok=True)
            (self.folder / place / "0000.png").write_text(picture)
            row = replace(row, artefacts={"images": place})
        return self.store.put(row)

    def picture(self, row: Row) -> str:
        return (self.folder / "images" / row.key / "0000.png").read_text()

    def keys(self) -> set[str]:
        return {row.key for row in self.store.rows()}

    def earlier(self) -> dict[str, Row]:
        folder = self.store.rows_folder / "earlier"
        return {path.name: parse_row(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture(params=["memory", "file", "s3"])
def machines(request, tmp_path, monkeypatch):
    """Two machines whose mirrors have the same three rows, and their store."""
    name = f"sync-{os.urandom(6).hex()}"
    if request.param == "s3":
        url = f"{request.getfixturevalue('s3')}/{name}"
    else:
        url = f"memory://{name}" if request.param == "memory" else f"file://{tmp_path}/{name}"
    one = Machine(monkeypatch, tmp_path / "one", url)
    other = Machine(monkeypatch, tmp_path / "other", url)
    for row in ROWS:
        one.put(row)
    one.push()
    other.pull()
    assert one.keys() == other.keys() == set(KEYS)
    return one, other


def there(machine: Machine) -> set[str]:
    return {name.removesuffix(".json") for name in machine.remote.listing("smoke/rows")}


def test_a_row_that_was_deleted_in_the_store_leaves_both_mirrors(machines):
    for machine in machines:
        machine.pull()
    machines[0].remote.forget(f"smoke/rows/{KEYS[0]}.json")
    for machine in machines:
        machine.pull()
        assert machine.keys() == set(KEYS[1:])
        assert machine.earlier() == {f"{KEYS[0]}.1.json": ROWS[0]}
        assert len(machine.lines) == 1
        assert "1 row(s) were deleted" in machine.lines[0]
        assert ROWS[0].cell.label in machine.lines[0]
        machine.push()
        machine.pull()
        assert len(machine.lines) == 1
        assert there(machine) == set(KEYS[1:])


def test_all_rows_may_be_deleted(machines):
    for key in KEYS:
        machines[0].remote.forget(f"smoke/rows/{key}.json")
    for machine in machines:
        machine.pull()
        assert machine.keys() == set()
        assert set(machine.earlier()) == {f"{key}.1.json" for key in KEYS}


def test_a_row_that_never_went_up_stays_and_goes_up(machines):
    one, _ = machines
    fourth = one.put(Row(Cell("emoji-t2i", "dgq", "w4a8"), Status.OK))
    one.remote.forget(f"smoke/rows/{KEYS[0]}.json")
    one.pull()
    assert one.keys() == {*KEYS[1:], fourth.key}
    one.push()
    assert there(one) == {*KEYS[1:], fourth.key}


def test_a_row_that_was_made_again_here_stays_and_goes_up_though_it_was_deleted(machines):
    one, _ = machines
    again = one.put(ROWS[0])
    one.remote.forget(f"smoke/rows/{KEYS[0]}.json")
    one.pull()
    assert one.store.get(KEYS[0]) == again
    one.push()
    assert there(one) == set(KEYS)


def test_a_row_that_is_moved_back_goes_up_again_with_its_pictures(machines):
    one, other = machines
    row = one.put(ROWS[0], picture="mine")
    one.push()
    one.remote.forget(f"smoke/rows/{row.key}.json")
    one.remote.forget_folder(f"smoke/images/{row.key}")
    one.pull()
    earlier = one.store.rows_folder / "earlier" / f"{row.key}.{row.attempt}.json"
    earlier.rename(one.store.path(row.key))
    one.pull()
    one.push()
    other.pull()
    assert other.store.get(row.key) == row
    assert other.picture(row) == "mine"


@pytest.mark.parametrize("since", ["nothing", "rows of another machine"])
def test_a_store_that_lost_everything_gets_every_row_back(machines, since):
    """Also where one machine has brought its rows back before the other one looks."""
    one, other = machines
    only_there = other.put(Row(Cell("emoji-t2i", "dgq", "w4a8"), Status.OK))
    other.push()
    one.remote.system.rm(one.remote.root, recursive=True)
    if since != "nothing":
        one.push()
        one.pull()
        one.push()
    other.pull()
    other.push()
    assert other.earlier() == {}
    assert other.lines == []
    assert there(other) == {*KEYS, only_there.key}


def test_without_what_a_mirror_knew_nothing_is_taken_away(machines):
    one, _ = machines
    (one.folder / KNOWN).unlink()
    one.remote.forget(f"smoke/rows/{KEYS[0]}.json")
    one.pull()
    assert one.keys() == set(KEYS)


def test_an_older_row_of_the_store_does_not_replace_a_newer_one_here(machines):
    """Both made attempt 2 without knowing of the other; this machine's ended later."""
    one, other = machines
    older = other.put(replace(ROWS[0], finished="2026-01-01T11:00:00+00:00"), picture="older")
    other.push()
    newer = one.put(replace(ROWS[0], finished="2026-01-01T12:00:00+00:00"), picture="newer")
    for _ in range(2):
        one.pull()
        assert one.store.get(KEYS[0]) == newer
        assert one.picture(newer) == "newer"
    assert sorted(one.earlier()) == [f"{KEYS[0]}.1.json", f"{KEYS[0]}.2.json"]
    assert one.earlier()[f"{KEYS[0]}.2.json"] == older
    one.push()
    other.pull()
    assert other.store.get(KEYS[0]) == newer
    assert other.picture(newer) == "newer"
    assert older in other.earlier().values()


def test_a_newer_row_of_the_store_replaces_an_unsent_one_which_is_kept(machines):
    one, other = machines
    newer = other.put(replace(ROWS[0], finished="2026-01-01T12:00:00+00:00"), picture="newer")
    other.push()
    older = one.put(replace(ROWS[0], finished="2026-01-01T11:00:00+00:00"), picture="older")
    one.pull()
    assert one.store.get(KEYS[0]) == newer
    assert one.picture(newer) == "newer"
    assert one.earlier()[f"{KEYS[0]}.2.json"] == older


def test_one_row_that_is_asked_for_does_not_replace_a_newer_one_either(machines):
    one, _ = machines
    newer = one.put(ROWS[0])
    one.sync().pull_row(KEYS[0])
    assert one.store.get(KEYS[0]) == newer


def test_pictures_of_an_unsent_row_stay(machines):
    """They went up before the row, or the store has those of the attempt before."""
    one, _ = machines
    one.put(ROWS[0], picture="first")
    one.push()
    again = one.put(ROWS[0], picture="again")
    one.pull()
    assert one.picture(again) == "again"


def test_two_rows_of_one_attempt_are_both_kept(machines):
    one, _ = machines
    for reason in ("first", "second", "second"):
        one.store.keep_earlier(replace(ROWS[0], reason=reason))
    assert sorted(one.earlier()) == [f"{KEYS[0]}.1.2.json", f"{KEYS[0]}.1.json"]
    assert one.put(ROWS[0]).attempt == 2


def test_a_row_of_the_store_that_cannot_be_read_replaces_none(machines):
    one, _ = machines
    name = f"smoke/rows/{KEYS[0]}.json"
    later = signed_text(ROWS[0]).replace('"schema_version": ', '"schema_version": 9')
    one.remote.push(name, later.encode())
    for _ in range(2):
        one.pull()
        one.push()
    assert one.store.get(KEYS[0]) == ROWS[0]
    assert one.remote.fetch(name) == later.encode()
    assert len(one.lines) == 1
    assert "no row that this version reads" in one.lines[0]


def test_what_failed_to_go_up_is_unsent(machines, monkeypatch):
    one, _ = machines

    def fail(self, name, data):
        raise UserError("cannot write: the store is gone")

    again = one.put(ROWS[0])
    with monkeypatch.context() as patched:
        patched.setattr(type(one.remote), "push", fail)
        with pytest.raises(UserError, match="the store is gone"):
            one.sync().push_row(again)
    one.remote.forget(f"smoke/rows/{KEYS[0]}.json")
    one.pull()
    assert one.store.get(KEYS[0]) == again


def hashed(machine: Machine, row: Row, picture: str) -> Row:
    """A row that was made here with a picture and scores, and states their hashes."""
    files = {"images": f"images/{row.key}", "scores": f"scores/{row.key}.npz"}
    machine.put(row, picture=picture)
    scores = machine.folder / files["scores"]
    scores.parent.mkdir(exist_ok=True)
    scores.write_text(f"scores of {picture}")
    listing = {"0000.png": bytes_sha256(machine.folder / files["images"] / "0000.png")}
    hashes = {"images_sha256": listing_sha256(listing), "scores_sha256": bytes_sha256(scores)}
    return machine.store.put(replace(row, artefacts=files | hashes))


def spoil(machine: Machine, what: str, row: Row, another: Row) -> None:
    """Change what the store has of a row."""
    system, place = machine.remote.system, f"{machine.remote.root}/smoke"
    image = f"{place}/images/{row.key}.tar"
    if what == "another row's":
        system.pipe_file(image, system.cat_file(f"{place}/images/{another.key}.tar"))
    elif what == "cut off":
        system.pipe_file(image, system.cat_file(image)[:700])
    elif what == "emptied":
        system.pipe_file(image, b"")
    else:
        system.pipe_file(f"{place}/scores/{row.key}.npz", b"other scores")


@pytest.mark.parametrize("what", ["another row's", "cut off", "emptied", "other scores"])
def test_files_that_are_not_those_of_their_row_are_left_out(machines, monkeypatch, tmp_path, what):
    one, other = machines
    row, another = (hashed(one, row, row.cell.bits) for row in ROWS[:2])
    one.push()
    image = f"{one.remote.root}/smoke/images/{row.key}.tar"
    before = one.remote.system.cat_file(image)
    spoil(one, what, row, another)
    new = Machine(monkeypatch, tmp_path / "new", one.remote.url)
    kind = "scores" if what == "other scores" else "images"
    place = "scores/{}.npz" if kind == "scores" else "images/{}"
    for number in (1, 2):  # each sync asks again
        new.pull()
        assert len(new.lines) == number
        assert row.cell.label in new.lines[-1]
        assert f"its {kind} in {one.remote.url}/smoke" in new.lines[-1]
        assert new.store.get(row.key) == row
        assert not (new.folder / place.format(row.key)).exists()
        assert new.picture(another) == another.cell.bits
    if kind == "images":
        one.remote.system.pipe_file(image, before)
        new.pull()
        assert new.picture(row) == row.cell.bits
        assert len(new.lines) == 2
    assert other.lines == one.lines == []


def test_pictures_of_an_earlier_attempt_do_not_stand_for_those_that_are_left_out(machines):
    one, other = machines
    row, another = (hashed(one, row, row.cell.bits) for row in ROWS[:2])
    one.push()
    other.pull()
    assert other.picture(row) == row.cell.bits
    again = hashed(one, ROWS[0], "again")
    one.push()
    spoil(one, "another row's", again, another)
    other.pull()
    assert other.store.get(row.key) == again
    assert not (other.folder / "images" / row.key).exists()
    assert len(other.lines) == 1


def test_pictures_that_lie_here_already_are_not_asked_for(machines, monkeypatch):
    one, _ = machines
    row = hashed(one, ROWS[0], "mine")
    one.push()
    (one.folder / KNOWN).unlink()
    spoil(one, "cut off", row, row)
    one.pull()
    assert one.picture(row) == "mine"
    assert one.lines == []
