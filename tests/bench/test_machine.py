import json

from quantarena.bench import machine


def test_a_fingerprint_is_plain_and_complete():
    found = machine.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["ram_bytes"] > 1e8
    assert found["versions"]["torch"]
    assert set(found) >= {"isa", "os", "python", "git", "gpu", "arch"}


def test_a_fingerprint_cannot_be_changed_from_outside():
    machine.fingerprint()["versions"].clear()
    assert machine.fingerprint()["versions"]


def test_machines_are_told_apart_by_what_makes_them_fast():
    here = machine.fingerprint()
    assert machine.same_machine(here, {**here, "git": None})
    assert not machine.same_machine(here, {**here, "cores": 99})
    assert not machine.same_machine(here, {})


def test_a_container_with_half_the_cores(monkeypatch):
    texts = {"cpu.max": "150000 100000\n", "memory.max": "1000000\n"}
    monkeypatch.setattr(machine, "_cgroup", lambda name: texts.get(name, ""))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.cores() == 2
    assert machine.memory_limit() == 1_000_000
    texts["cpu.max"] = "max 100000\n"
    assert machine.cores() == 8


def test_kills_for_memory_are_counted(monkeypatch):
    monkeypatch.setattr(machine, "_cgroup", lambda name: "low 0\noom_kill 3\noom 4\n")
    monkeypatch.setattr(machine, "_read", lambda path: "pgfault 9\noom_kill 2\n")
    assert machine.oom_kills() == 5


def test_a_tool_that_is_absent_or_fails_says_nothing():
    assert machine._output("no-such-tool-anywhere") == ""
    assert machine._output("false") == ""
