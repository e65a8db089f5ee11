"""A driver on a cluster in a process of its own, ways to kill parts of both, and what is left."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from quantarena.bench.cluster import worker


def patiently(start):
    """Start a part of Ray, which gives up after half a minute on a busy machine."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:
            last = error
    raise last


def kernels_built_before(index):
    """Put the library of this source tree where nodes look: to build it takes minutes."""
    build = worker._builder()
    package = Path(build.__file__).parent
    kept = index / "kernels" / worker._library_key(package, build.find_compiler())
    kept.mkdir(parents=True)
    for name in (build.LIBRARY_NAME, build.REASON_NAME):
        if (package / name).exists():
            shutil.copyfile(package / name, kept / name)


class World:
    """A cluster, one results folder, and the log of stages in its cache."""

    def __init__(self, bench, cluster, arguments, environment=None):
        self.bench, self.cluster, self.arguments = bench, cluster, arguments
        self.environment = environment
        self.nodes = list(cluster.worker_nodes) if cluster else []
        self.output = bench.root / "driver.txt"
        self.driver = None

    def drive(self):
        """Start the command; another process than this one, which can be killed."""
        with open(self.output, "ab") as stream:
            self.driver = subprocess.Popen(
                self.arguments, stdout=stream, stderr=stream, env=self.environment
            )

    def lines(self):
        file = self.bench.cache / "stages.log"
        return file.read_text().splitlines() if file.is_file() else []

    def begun(self, names=("record", "fp_images", "quantize", "images", "scores")):
        """Number of stages that have begun."""
        return sum(line.split()[:2] in [["begin", name] for name in names] for line in self.lines())

    def wait_for(self, condition, seconds=500.0):
        """Wait until it is so, or the driver has ended."""
        deadline = time.monotonic() + seconds
        while not condition() and self.driver.poll() is None:
            assert time.monotonic() < deadline, self.output.read_text()[-3000:]
            time.sleep(0.05)

    def busy_pids(self):
        """Processes in the middle of a stage, by the log."""
        open_ = {}
        for line in self.lines():
            what, stage, key, pid = line.split()
            if what == "begin":
                open_[stage, key] = int(pid)
            else:
                open_.pop((stage, key), None)
        return sorted(pid for pid in set(open_.values()) if os.path.exists(f"/proc/{pid}"))

    def add_node(self):
        self.nodes.append(patiently(lambda: self.cluster.add_node(num_cpus=1)))

    def kill_driver(self):
        self.driver.kill()
        self.driver.wait()

    def kill_worker(self, rng):
        pids = self.busy_pids()
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)

    def kill_raylet(self, rng):
        """One process of a node: its raylet. What is left of the node is cleared away."""
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        for kind, process in node.live_processes():
            if str(kind) == "raylet":
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(rng.random())
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()

    def kill_node(self, rng):
        """All processes of a node, its workers too."""
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()


def repeated(lines):
    """Stages that began after they had ended, or ended twice."""
    ended, bad = Counter(), []
    for line in lines:
        what, stage, key, _ = line.split()
        if what == "end":
            ended[stage, key] += 1
        if ended[stage, key] > (what == "end"):
            bad.append(line)
    return bad


def outcome(folder):
    """What must not depend on kills: keys, numbers and images of each row; and its status."""
    found = {}
    for path in sorted((folder / "rows").glob("*.json")):
        row = json.loads(path.read_text())
        pictures = sorted((folder / "images" / row["key"]).glob("*.png"))
        hashes = [hashlib.sha256(picture.read_bytes()).hexdigest() for picture in pictures]
        measured = [(m["name"], m["value"]) for m in row["measurements"]]
        keys = {name: key for name, key in row["stage_keys"].items() if name != "inputs"}
        found[path.stem] = (row["status"], keys, measured, hashes, row["latency"] is not None)
    return found
