"""Ray's own failures: its slow start and its death are no mistakes of the request."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from quantarena.bench.errors import RunStopped, UserError
from quantarena.bench.run.ray_session import require_alive, start_ray


def fake_ray(failures):
    calls = []

    def init(**settings):
        calls.append(settings)
        if len(calls) <= failures:
            raise RuntimeError("The current node timed out during startup.")

    worker = SimpleNamespace(_worker_logs_enabled=True, _global_node=None)
    ray = SimpleNamespace(
        init=init, shutdown=lambda: None, _private=SimpleNamespace(worker=worker), calls=calls
    )
    return ray


def node_with(dead):
    node = SimpleNamespace(dead_processes=lambda: [(kind, None) for kind in dead])
    return SimpleNamespace(_private=SimpleNamespace(worker=SimpleNamespace(_global_node=node)))


def test_a_slow_start_is_tried_again(monkeypatch):
    ray = fake_ray(1)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert start_ray(2) is ray
    assert len(ray.calls) == 2


def test_ray_that_does_not_start_is_no_mistake_in_the_request(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", fake_ray(2))
    with pytest.raises(RunStopped, match=r"timed out during startup.*same command") as caught:
        start_ray(2)
    assert not isinstance(caught.value, UserError)


def test_a_dead_part_of_ray_stops_the_run():
    require_alive(node_with([]))
    require_alive(node_with(["log_monitor"]))
    with pytest.raises(RunStopped, match="Ray's process raylet died"):
        require_alive(node_with(["raylet"]))


def test_the_command_line_exits_with_1(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", fake_ray(2))
    code, out, err = bench("run", "smoke", "--executor", "ray", "--workers", "2")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: Ray did not start its workers")


@pytest.mark.slow
def test_a_killed_raylet_ends_the_run_at_once(bench, monkeypatch):
    from quantarena.bench.run.progress import Progress

    bench.behave(rtn__w4a8="hang")

    def kill(self, task, stage, done, total):
        import ray

        if stage == "quantize" and task.cell.bits == "w4a8":
            for kind, process in ray._private.worker._global_node.live_processes():
                if "raylet" in str(kind):
                    os.kill(process.pid, signal.SIGKILL)

    with monkeypatch.context() as patched:  # an undo of everything would bring real stages back
        patched.setattr(Progress, "listen", kill)
        code, out, err = bench("run", "smoke", "--executor", "ray", "--workers", "1")
    assert (code, out) == (1, "")
    assert "Ray's process raylet died" in err.splitlines()[-1]
    assert "Traceback" not in err
    bench.behave()
    assert bench("run", "smoke", "--executor", "local")[0] == 0
