"""Two machines as far as the kernel can pretend: network, host name, temporary files, code.

Each has a network namespace with one end of a wire, a host name and folders for temporary files of
its own; the results folder is shared. The source tree of the second one is empty, so that its
workers have only the code that travelled there. It skips where namespaces are not permitted.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from havoc import outcome, patiently, repeated

ROOT = Path(__file__).parents[3]
NETWORK = "10.77.31"


def sh(*command, **rest):
    return subprocess.run(command, check=True, capture_output=True, text=True, **rest)


def permitted():
    """Whether this process may make namespaces of all kinds that are needed."""
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False
    )
    return tried.returncode == 0


class Machine:
    """A network namespace with a wire, and processes in it."""

    def __init__(self, number, folder):
        self.name, self.address = f"qa-{os.getpid()}-{number}", f"{NETWORK}.{number}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.session = f"/tmp/{self.name}"  # a socket's path has at most 107 characters
        sh("ip", "netns", "add", self.name)
        self.inside("ip", "link", "set", "lo", "up")

    def inside(self, *command, **rest):
        return sh("ip", "netns", "exec", self.name, *command, **rest)

    def plug(self, device):
        sh("ip", "link", "set", device, "netns", self.name)
        self.inside("ip", "addr", "add", f"{self.address}/24", "dev", device)
        self.inside("ip", "link", "set", device, "up")

    def environment(self):
        """Temporary files, caches and Ray's session of its own."""
        own = {"TMPDIR": str(self.folder), "QUANTARENA_CACHE": str(self.folder / "index")}
        return {**os.environ, **own, "RAY_worker_niceness": "0"}

    def command(self, *words, bare=False):
        """The words as a command on this machine; ``bare`` hides the source tree from it."""
        hidden = [f"mount -t tmpfs none {ROOT / room}" for room in ("bench", "methods")]
        steps = [f"hostname {self.name}", *(hidden if bare else ()), 'exec "$@"']
        inner = ["unshare", "--mount", "--uts", "sh", "-c", " && ".join(steps), "sh", *words]
        return ["ip", "netns", "exec", self.name, *inner]

    def ray(self, *words, bare=False):
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1"]
        where = [f"--node-ip-address={self.address}", f"--temp-dir={self.session}"]
        given = [*ray, *where, *words]
        sh(*self.command(*given, bare=bare), env=self.environment(), timeout=200)

    def kill(self):
        """All processes at once, as when the power fails."""
        pids = sh("ip", "netns", "pids", self.name).stdout.split()
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        return pids

    def remove(self):
        self.kill()
        subprocess.run(["ip", "netns", "del", self.name], check=False)
        shutil.rmtree(self.session, ignore_errors=True)


@pytest.fixture
def machines(tmp_path):
    """Two machines with a wire between them."""
    if not permitted():
        pytest.skip("network namespaces need root and the programs ip and unshare")
    made = []
    try:
        wires = [f"qa{os.getpid() % 10000}{end}" for end in "ab"]
        sh("ip", "link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for number, wire in enumerate(wires, 1):
            made.append(Machine(number, tmp_path))
            made[-1].plug(wire)
        yield made
    finally:
        for machine in made:
            machine.remove()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_machine_dies_in_mid_run(world_of, machines):
    """The code travels to a machine without it; its death costs nothing that had ended."""
    first, second = machines
    run, bench = world_of(first)
    patiently(lambda: first.ray("--head", "--port=6379", "--include-dashboard=false"))
    patiently(lambda: second.ray(f"--address={first.address}:6379", bare=True))
    run.drive()
    begun = ("quantize",)
    run.wait_for(lambda: f"{second.name} (" in run.output.read_text())
    run.wait_for(lambda: run.begun(begun) >= 2)
    time.sleep(0.5)
    hosts = {pid for pid in run.busy_pids()} & {
        int(pid) for pid in sh("ip", "netns", "pids", second.name).stdout.split()
    }
    assert hosts  # a stage was running over there, by code that had travelled
    second.kill()
    assert run.driver.wait(timeout=900) == 0, run.output.read_text()[-3000:]
    said = run.output.read_text()
    assert f"node {second.name}" in said
    assert "left the cluster" in said
    assert repeated(run.lines()) == []
    rows = outcome(bench.results / "smoke")
    assert len(rows) == 5
    assert {status for status, *_ in rows.values()} == {"ok"}
