"""A Ray cluster of three nodes on this machine, and a run on it that is not started yet."""

import json
import shutil
import sys
from pathlib import Path

import pytest

# The tests here share a module of ways to kill.
sys.path.append(str(Path(__file__).parent))


def kernels_built_before(index):
    """Put the library of this source tree where nodes look: to build it takes minutes."""
    from quantarena.bench.cluster import worker

    build = worker._builder()
    package = Path(build.__file__).parent
    kept = index / "kernels" / worker._library_key(package, build.find_compiler())
    kept.mkdir(parents=True)
    for name in (build.LIBRARY_NAME, build.REASON_NAME):
        if (package / name).exists():
            shutil.copyfile(package / name, kept / name)


@pytest.fixture
def world_of(bench, command, monkeypatch):
    """A run over stages that are logged, on a cluster of other makers, from a machine of it."""
    from havoc import World

    made = []

    def make(machine, *arguments, pace=1.0):
        bench.cache.mkdir(parents=True, exist_ok=True)
        (bench.cache / "pace.json").write_text(json.dumps({"seconds": pace}))
        kernels_built_before(machine.folder.parent / "index")
        for index in machine.folder.parent.glob("qa-*"):
            shutil.copytree(machine.folder.parent / "index", index / "index")
        given = ("smoke", *arguments, "--address", f"{machine.address}:6379")
        line = command(bench, "run", *given, stages="kept_stages")
        made.append(World(bench, None, machine.command(*line), machine.environment()))
        return made[-1], bench

    yield make
    for each in made:
        if each.driver is not None and each.driver.poll() is None:
            each.kill_driver()


@pytest.fixture
def world(bench, command, monkeypatch):
    """A cluster of a head and two nodes with a CPU each, and a run that is not started yet."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "20")  # busy is not dead
    import ray
    from havoc import World, patiently
    from ray.cluster_utils import Cluster

    from quantarena.bench.run import executors

    made, worlds = [], []

    def make(*arguments, pace=0.4, stages="kept_stages", cpus=1):
        monkeypatch.setattr(executors, "STAGES", stages)  # of runs in this process
        bench.cache.mkdir(parents=True, exist_ok=True)
        kernels_built_before(bench.root / "index")
        (bench.cache / "pace.json").write_text(json.dumps({"seconds": pace}))
        cluster = patiently(lambda: Cluster(shutdown_at_exit=True))
        made.append(cluster)
        quiet = {"include_dashboard": False, "include_log_monitor": False}
        patiently(lambda: cluster.add_node(num_cpus=cpus, **quiet))
        for _ in range(2):
            patiently(lambda: cluster.add_node(num_cpus=cpus))
        address = ("--address", cluster.address)
        line = command(bench, "run", *arguments, *address, stages=stages)
        worlds.append(World(bench, cluster, line))
        return worlds[-1]

    yield make
    for each in worlds:
        if each.driver is not None and each.driver.poll() is None:
            each.kill_driver()
    if ray.is_initialized():
        ray.shutdown()
    for cluster in made:
        cluster.shutdown()
