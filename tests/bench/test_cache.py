import errno
import threading

import pytest

from quantarena.bench.cache import StageCache
from quantarena.bench.errors import UserError


def leftovers(root):
    return sorted(p.name for p in root.iterdir())


def test_made_once(tmp_path):
    cache, made = StageCache(tmp_path / "new" / "cache"), []

    def make(folder):
        made.append(folder)
        (folder / "a").write_text("x")

    first = cache.get("stage", "key", make)
    assert cache.get("stage", "key", make) == first == cache.path("stage", "key")
    assert len(made) == 1
    assert (first / "a").read_text() == "x"
    assert leftovers(cache.root) == ["stage-key"]
    cache.get("stage", "other", make)
    assert len(made) == 2


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), FileNotFoundError("y")])
def test_an_error_inside_leaves_nothing_and_comes_out_as_it_is(tmp_path, error):
    cache = StageCache(tmp_path)

    def make(folder):
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error)) as caught:
        cache.get("stage", "key", make)
    assert caught.value is error
    assert leftovers(tmp_path) == []


def test_full_disk_says_so(tmp_path):
    def make(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="cannot be written: No space left"):
        StageCache(tmp_path).get("stage", "key", make)


def test_cache_path_that_is_a_file(tmp_path):
    file = tmp_path / "cache"
    file.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        StageCache(file).get("stage", "key", lambda folder: None)


def test_two_makers_at_once_agree(tmp_path):
    cache, both, results = StageCache(tmp_path), threading.Barrier(2, timeout=20), []

    def make(folder):
        (folder / "who").write_text(threading.current_thread().name)
        both.wait()  # neither is done before the other has started

    def run():
        results.append(cache.get("stage", "key", make))

    threads = [threading.Thread(target=run, name=str(i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache.path("stage", "key")] * 2
    assert (results[0] / "who").read_text() in {"0", "1"}
    assert leftovers(tmp_path) == ["stage-key"]


def test_dropped_entries_are_made_again(tmp_path):
    cache, made = StageCache(tmp_path), []
    cache.get("stage", "key", made.append)
    cache.drop("stage", "key")
    cache.get("stage", "key", made.append)
    assert len(made) == 2


def test_a_damaged_entry_is_made_again_and_said(tmp_path, caplog):
    cache, made = StageCache(tmp_path), []

    def make(folder):
        made.append(folder)
        (folder / "number").write_text("7")

    def read(folder):
        return int((folder / "number").read_text())

    assert cache.load("stage", "key", make, read) == 7
    (cache.path("stage", "key") / "number").write_text("seve")
    assert cache.load("stage", "key", make, read) == 7
    assert len(made) == 2
    assert "is damaged" in caplog.text


def test_an_entry_that_never_reads_is_an_error_not_a_loop(tmp_path):
    cache, made = StageCache(tmp_path), []

    def read(folder):
        raise ValueError("never")

    with pytest.raises(ValueError, match="never"):
        cache.load("stage", "key", made.append, read)
    assert len(made) == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, ""), RuntimeError("CUDA out of memory")]
)
def test_an_entry_that_could_not_be_read_for_want_of_memory_stays(tmp_path, error):
    cache, made = StageCache(tmp_path), []

    def read(folder):
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            cache.load("stage", "key", made.append, read)
    assert len(made) == 1
