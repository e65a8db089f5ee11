"""Files by their content, read once, and never taken for another."""

import json
import os

import pytest

from quantarena.bench import content
from quantarena.bench.content import bytes_sha256, file_sha256, index_file, tree_sha256
from quantarena.bench.errors import UserError

LARGE = 1 << 17


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "index"))
    fresh()
    yield
    fresh()


def fresh():
    """As another process would start."""
    content._memory.clear()
    content._read.clear()


def settled(file):
    """Time stamps from before the clock's resolution matters; the change time stays now."""
    os.utime(file, ns=(10**18, 10**18))


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose bytes were read."""
    names = []

    def spy(file):
        names.append(file.name)
        return bytes_sha256(file)

    monkeypatch.setattr(content, "bytes_sha256", spy)
    monkeypatch.setattr(content, "_SETTLED_NS", 0)
    return names


def test_a_large_file_is_read_once_by_all_processes(tmp_path, reads):
    file = tmp_path / "weights"
    file.write_bytes(b"a" * LARGE)
    first = file_sha256(file)
    fresh()
    assert file_sha256(file) == first
    assert reads == ["weights"]


def test_a_file_replaced_in_place_with_equal_size_and_time_is_noticed(tmp_path, reads):
    file = tmp_path / "weights"
    file.write_bytes(b"a" * LARGE)
    settled(file)
    first = file_sha256(file)
    file.write_bytes(b"b" * LARGE)
    settled(file)
    assert file_sha256(file) != first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"a" * LARGE)
    file_sha256(file)
    assert not index_file().exists()


def test_a_damaged_index_costs_time_only(tmp_path, reads):
    file = tmp_path / "weights"
    file.write_bytes(b"a" * LARGE)
    first = file_sha256(file)
    for text in ("", "[]", '{"x": 3}', json.dumps({str(file): [1, 2, 3, 4, "0" * 64]})):
        index_file().write_text(text)
        fresh()
        assert file_sha256(file) == first


def test_an_index_that_cannot_be_written_is_no_failure(tmp_path, reads, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "file"))
    file = tmp_path / "weights"
    file.write_bytes(b"a" * LARGE)
    assert file_sha256(file) == file_sha256(file) == bytes_sha256(file)


def test_a_tree_is_names_and_bytes(tmp_path):
    folder = tmp_path / "real"
    (folder / "sub").mkdir(parents=True)
    (folder / "one.png").write_bytes(b"1")
    (folder / "sub/two.png").write_bytes(b"2")
    keys = [tree_sha256(folder)]
    (folder / "sub/two.png").write_bytes(b"3")
    keys.append(tree_sha256(folder))
    (folder / "one.png").rename(folder / "other.png")
    keys.append(tree_sha256(folder))
    assert len(set(keys)) == 3
    (folder / ".hidden").write_bytes(b"4")
    assert tree_sha256(folder) == keys[-1]


def test_a_pipe_is_one_line_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no regular file"):
        file_sha256(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no regular file"):
        tree_sha256(tmp_path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        file_sha256(tmp_path / "nothing")
