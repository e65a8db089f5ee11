"""A Ray cluster of three nodes on this machine, and a run on it that is not started yet."""

import json
import shutil
import sys
from pathlib import Path

import pytest

# The tests here share a module of ways to kill.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def world_of(bench, command, monkeypatch):
    """A run over stages that are logged, on a cluster of other makers, from a machine of it."""
    from havoc import World, kernels_built_before

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
def three_nodes(monkeypatch):
    """Start a cluster of a head and two nodes with as many CPUs each."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "20")  # busy is not dead
    import ray
    from havoc import patiently
    from ray.cluster_utils import Cluster

    made = []

    def make(cpus=1):
        cluster = patiently(lambda: Cluster(shutdown_at_exit=True))
        made.append(cluster)
        quiet = {"include_dashboard": False, "include_log_monitor": False}
        patiently(lambda: cluster.add_node(num_cpus=cpus, **quiet))
        for _ in range(2):
            patiently(lambda: cluster.add_node(num_cpus=cpus))
        return cluster

    yield make
    if ray.is_initialized():
        ray.shutdown()
    for cluster in made:
        cluster.shutdown()


@pytest.fixture
def world(bench, command, three_nodes, monkeypatch):
    """A cluster of a head and two nodes with a CPU each, and a run that is not started yet."""
    from havoc import World, kernels_built_before

    from quantarena.bench.run import executors

    worlds = []

    def make(*arguments, pace=0.4, stages="kept_stages", cpus=1):
        monkeypatch.setattr(executors, "STAGES", stages)  # of runs in this process
        bench.cache.mkdir(parents=True, exist_ok=True)
        kernels_built_before(bench.root / "index")
        (bench.cache / "pace.json").write_text(json.dumps({"seconds": pace}))
        cluster = three_nodes(cpus)
        address = ("--address", cluster.address)
        line = command(bench, "run", *arguments, *address, stages=stages)
        worlds.append(World(bench, cluster, line))
        return worlds[-1]

    yield make
    for each in worlds:
        if each.driver is not None and each.driver.poll() is None:
            each.kill_driver()
