"""Kills in mid-run: the same command goes on, and nothing that had ended is computed again."""

import json
import random

import pytest
from havoc import outcome, repeated

KINDS = ("driver", "worker", "raylet", "node")
SEED = 20261129
"""Of the order and the moments of the kills."""


def ran_undisturbed(bench, *arguments):
    """What the same cells come to in this process, with a cache of their own."""
    bench.root = bench.root / "undisturbed"
    code, _, err = bench("run", *arguments, "--executor", "local")
    assert code == 0, err
    return outcome(bench.results / "smoke")


def check(world, *arguments):
    """Nothing computed twice, nothing lost or doubled, the results of an undisturbed run."""
    folder = world.bench.results / "smoke"
    assert repeated(world.lines()) == []
    left = outcome(folder)
    planned = json.loads((folder / "plan.json").read_text())["cells"]
    assert len(left) == len(planned)
    for path in (folder / "rows" / "earlier").glob("*.json"):  # a doubled row is an ok one here
        assert json.loads(path.read_text())["status"] != "ok"
    assert {status for status, *_ in left.values()} == {"ok"}
    assert left == ran_undisturbed(world.bench, *arguments)
    return left


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_dies_in_mid_run(world):
    asked = ("smoke", "--timeout", "5")
    run = world(*asked, pace=1.0)
    run.drive()
    run.wait_for(lambda: run.begun(("quantize",)) >= 2)
    on_nodes = {str(pid) for pid in run.busy_pids()}
    run.kill_node(random.Random(0))
    assert run.driver.wait(timeout=400) == 0, run.output.read_text()[-3000:]
    said = run.output.read_text()
    assert "left the cluster" in said
    assert on_nodes
    check(run, *asked)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thirty_kills(world):
    rng = random.Random(SEED)
    kinds = [kind for kind in KINDS for _ in range(8)]
    rng.shuffle(kinds)
    asked = ["smoke", "--timeout", "5", *(f"--seed={seed}" for seed in range(8))]
    run = world(*asked, pace=1.0)
    done = []
    run.drive()
    while len(done) < 30 and kinds:
        goal = run.begun() + rng.randrange(1, 5)
        run.wait_for(lambda goal=goal: run.begun() >= goal)
        if run.driver.poll() is None:
            kind = kinds.pop()
            {
                "driver": lambda: run.kill_driver(),
                "worker": lambda: run.kill_worker(rng),
                "raylet": lambda: run.kill_raylet(rng),
                "node": lambda: run.kill_node(rng),
            }[kind]()
            done.append(kind)
            print(len(done), kind, run.begun(), flush=True)
        elif run.driver.returncode == 0:
            break
        if run.driver.poll() is not None:
            run.drive()
    while run.driver.wait() != 0:  # a cell that lost two workers is left to the next run
        assert run.driver.returncode in (0, 1, -9), run.output.read_text()[-3000:]
        run.drive()
    print(done, len(done))
    assert len(done) == 30
    check(run, *asked)
