"""Preset smoke with the stages that people run, on three nodes of which one dies meanwhile."""

import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
from havoc import World, kernels_built_before, outcome

COMMAND = "import sys; from quantarena.bench.cli.main import main; sys.exit(main())"


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_node_dies_among_real_stages(three_nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "index"))
    kernels_built_before(tmp_path / "index")
    cluster = three_nodes()

    def line(place, *options):
        given = ["run", "smoke", "--results", str(tmp_path / place), *options]
        return [sys.executable, "-c", COMMAND, *given]

    rows = tmp_path / "cluster" / "smoke" / "rows"
    bench = SimpleNamespace(root=tmp_path, cache=tmp_path)
    run = World(bench, cluster, line("cluster", "--address", cluster.address))
    run.drive()
    run.wait_for(lambda: len(list(rows.glob("*.json"))) >= 1, seconds=900)
    run.kill_node(random.Random(0))
    assert run.driver.wait(timeout=1500) == 0, run.output.read_text()[-3000:]
    assert "left the cluster" in run.output.read_text()
    alone = subprocess.run(
        line("alone", "--executor", "local"), capture_output=True, text=True, timeout=900
    )
    assert alone.returncode == 0, alone.stderr[-3000:]
    found = outcome(tmp_path / "cluster" / "smoke")
    planned = json.loads((rows.parent / "plan.json").read_text())["cells"]
    assert len(found) == len(planned)
    assert found == outcome(tmp_path / "alone" / "smoke")
