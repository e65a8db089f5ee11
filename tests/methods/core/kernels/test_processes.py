"""Kernels called by several threads with teams of several sizes, and in forked processes.

Each test has a process of its own: what a team of threads leaves behind would reach other tests.
"""

import os
import subprocess
import sys

import pytest

from quantarena.methods.core.kernels import native

LAYERS = """
import os, sys, threading
import torch
from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

library = native.load(sys.argv[1])

def layer(shape, bits, **geometry):
    low = -(1 << (bits - 1))
    return PackedLayer(IntegerLayer(
        kind="linear" if len(shape) == 2 else "conv2d",
        weight_codes=torch.randint(low, -low, shape, dtype=torch.int8), weight_bits=bits,
        weight_scale=torch.rand(shape[0]) + 0.1, weight_zero=torch.randint(low, -low, shape[:1]),
        act_bits=8, act_scale=torch.tensor(0.03), act_zero=torch.tensor(100), **geometry), library)

# more than the 16 million products from which on a layer is shared among threads
cases = [
    (layer((160, 300), 4), torch.randn(500, 300)),
    (layer((48, 40, 3, 3), 8, padding=(1, 1)), torch.randn(3, 40, 24, 24)),
    (layer((48, 40, 3, 3), 2), torch.randn(3, 40, 24, 24).to(memory_format=torch.channels_last)),
    (layer((20, 33), 3), torch.randn(6, 33)),
]
torch.set_num_threads(1)
want = [module(x).numpy().tobytes() for module, x in cases]

def same():  # torch itself would compare with its team, which no forked process may do
    return all(module(x).numpy().tobytes() == y for (module, x), y in zip(cases, want))
"""

MIXED = """
wrong = []
start = threading.Barrier(4)

def work(team):
    torch.set_num_threads(team)  # of this thread alone
    start.wait()
    for turn in range(8):
        torch.set_num_threads(1 + (team + turn) % 4)
        wrong.extend([] if same() else [team])

threads = [threading.Thread(target=work, args=(team,)) for team in (1, 2, 3, 4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong, wrong
"""

FORKED = """
import time

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if action() else 3)
        except BaseException:
            os._exit(4)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    return "never ended"

def in_turns():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(3) as pool:
        return all(pool.map(lambda _: same(), range(6)))

def again():
    return child(same) == 0

for threads in (1, 3):
    torch.set_num_threads(threads)
    assert same()
    for action in (same, in_turns, again):
        assert (code := child(action)) == 0, (threads, action.__name__, code)
    assert same()  # the parent's team is as it was
# while other threads of the parent are inside of a kernel
stop = threading.Event()
busy = threading.Thread(target=lambda: [same() for _ in iter(stop.is_set, True)])
busy.start()
codes = [child(same) for _ in range(5)]
stop.set()
busy.join()
assert codes == [0] * 5, codes
"""


def units():
    return native.load().status.available or pytest.param("reference", marks=pytest.mark.skip)


def run(isa, script):
    # threads that wait asleep: on a busy machine, those that spin take minutes
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, "-c", LAYERS + script, isa],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", units())
def test_callers_with_teams_of_several_sizes_at_once(isa):
    run(isa, MIXED)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("isa", units())
def test_forked_processes_compute_whatever_their_parent_did(isa):
    """The team of a parent does not exist in its child; OpenMP would wait for it forever."""
    run(isa, FORKED)
