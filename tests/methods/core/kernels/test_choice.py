"""The instruction set is measured once for a machine and then remembered."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantarena.methods.core.kernels import choice, native

NAMES = native.load().status.available
LIBRARY = Path(native.__file__).with_name(native.LIBRARY_NAME)
pytestmark = pytest.mark.skipif(len(NAMES) < 3, reason="needs two units besides the portable one")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(choice.CACHE, str(tmp_path))
    monkeypatch.delenv("QUANTARENA_KERNELS", raising=False)
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """Measurements in which the last unit but the portable one is fastest; how many there were."""
    seconds = {name: 1.0 - 0.1 * i for i, name in enumerate(NAMES[:-1])}
    calls = []

    def measure(libraries):
        calls.append(tuple(libraries))
        return seconds

    monkeypatch.setattr(choice, "measure", measure)
    return calls


def test_the_fastest_is_kept_for_later_processes(cache, measured):
    wanted = (NAMES[-2], choice.MEASURED)
    assert choice.choose(LIBRARY, NAMES) == wanted
    assert choice.choose(LIBRARY, NAMES) == wanted
    assert measured == [NAMES[:-1]]  # never the portable one
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["isa"] == NAMES[-2]
    native.library.cache_clear()
    assert (native.status().isa, native.status().chosen) == wanted


def test_the_order_of_the_list_breaks_ties():
    assert choice.pick({"a": 1.02, "b": 1.0, "c": 1.01}) == "a"
    assert choice.pick({"a": 1.2, "b": 1.01, "c": 1.0}) == "b"
    assert choice.pick({"a": 2.0, "b": 3.0, "c": 1.0}) == "c"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"isa": 3}', b'{"isa": "scalar9"}', b"[" * 5000],
)
def test_a_damaged_answer_is_measured_again(cache, measured, damage):
    file = choice.cache_file(LIBRARY, NAMES)
    file.write_bytes(damage)
    assert choice.choose(LIBRARY, NAMES)[0] == NAMES[-2]
    assert len(measured) == 1
    assert choice.choose(LIBRARY, NAMES)[0] == NAMES[-2]
    assert len(measured) == 1
    assert list(cache.iterdir()) == [file]  # nothing is left beside it


def test_another_processor_or_list_has_its_own_answer(monkeypatch):
    mine = choice.cache_file(LIBRARY, NAMES)
    assert choice.cache_file(LIBRARY, NAMES[1:]) != mine
    monkeypatch.setattr(choice, "_processor", lambda: ["model: another"])
    assert choice.cache_file(LIBRARY, NAMES) != mine


def test_a_rebuilt_library_is_measured_again(tmp_path):
    other = tmp_path / "other.so"
    other.write_bytes(LIBRARY.read_bytes() + b"\0")
    assert choice.cache_file(other, NAMES) != choice.cache_file(LIBRARY, NAMES)


@pytest.mark.parametrize("obstacle", ["a file", "a folder", "no permission"])
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    cache, measured, monkeypatch, obstacle
):
    match obstacle:
        case "a file":
            (cache / "file").write_text("")
            monkeypatch.setenv(choice.CACHE, str(cache / "file"))
        case "a folder":
            choice.cache_file(LIBRARY, NAMES).mkdir()
        case _:
            cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert choice.choose(LIBRARY, NAMES)[0] == NAMES[-2]
    cache.chmod(stat.S_IRWXU)


def test_the_first_of_several_processes_decides(measured, monkeypatch):
    """Another process writes its answer while this one measures."""
    file = choice.cache_file(LIBRARY, NAMES)
    slower = choice.measure

    def measure(libraries):
        file.write_text(json.dumps({"format": 1, "isa": NAMES[0], "seconds": {}}))
        return slower(libraries)

    monkeypatch.setattr(choice, "measure", measure)
    assert choice.choose(LIBRARY, NAMES)[0] == NAMES[0]
    assert json.loads(file.read_text())["isa"] == NAMES[0]


def test_a_unit_that_fails_leaves_the_first_of_the_list(monkeypatch):
    def measure(libraries):
        raise OSError("no memory")

    monkeypatch.setattr(choice, "measure", measure)
    assert choice.choose(LIBRARY, NAMES) == (NAMES[0], "the first of the list: no memory")


def test_nothing_to_choose_from_is_not_measured(measured):
    assert choice.choose(LIBRARY, ("avx2", "scalar")) == ("avx2", choice.ONLY)
    assert not measured


def test_the_environment_overrides_the_measurement(measured, monkeypatch):
    monkeypatch.setenv("QUANTARENA_KERNELS", "scalar")
    assert native.status().isa == "scalar"
    assert native.status().chosen == "named by QUANTARENA_KERNELS"
    assert not measured


def test_the_measurement_is_short_and_plausible():
    libraries = {name: native.load(name) for name in NAMES[:-1]}
    choice.measure(libraries)
    started = time.process_time()
    seconds = choice.measure(libraries)
    assert time.process_time() - started < 0.1  # some 0.02 on an idle machine
    assert set(seconds) == set(libraries)
    assert all(1e-6 < spent < 1e-2 for spent in seconds.values())


def test_processes_that_start_at_once_agree(cache):
    code = "from quantarena.methods.core.kernels import status; print(status().isa)"
    team = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        for _ in range(3)
    ]
    said = {process.communicate()[0].strip() for process in team}
    assert len(said) == 1
    assert said <= set(NAMES)
    assert len(list(cache.iterdir())) == 1
