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
def world(bench, command, monkeypatch):
    """A cluster of a head and two nodes with a CPU each, and a run that is not started yet."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    import ray
    from havoc import World
    from ray.cluster_utils import Cluster

    from quantarena.bench.run import executors

    made, worlds = [], []

    def make(*arguments, pace=0.4, stages="kept_stages", cpus=1):
        monkeypatch.setattr(executors, "STAGES", stages)  # of runs in this process
        bench.cache.mkdir(parents=True, exist_ok=True)
        kernels_built_before(bench.root / "index")
        (bench.cache / "pace.json").write_text(json.dumps({"seconds": pace}))
        head = {"num_cpus": cpus, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        made.append(cluster)
        for _ in range(2):
            cluster.add_node(num_cpus=cpus)
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
