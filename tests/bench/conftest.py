"""A world with fake stages and one fake workload: a command line that runs in milliseconds."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

FAKES = Path(__file__).parent / "fakes"


@dataclass
class Bench:
    """The command line over fake stages, in a folder of its own."""

    root: Path
    capture: pytest.CaptureFixture

    @property
    def results(self):
        return self.root / "results"

    @property
    def cache(self):
        return self.results / ".cache"

    def behave(self, **script):
        self.cache.mkdir(parents=True, exist_ok=True)
        named = {name.replace("__", "/"): what for name, what in script.items()}
        (self.cache / "behaviour.json").write_text(json.dumps(named))

    def log(self):
        """What ran, without process ids."""
        file = self.cache / "log.txt"
        return [line.rpartition(" ")[0] for line in file.read_text().splitlines()]

    def __call__(self, *arguments, results=True):
        """Exit code, stdout and stderr of a command line."""
        from quantarena.bench.cli.main import run

        self.capture.readouterr()
        where = ("--results", str(self.results)) if results else ()
        code = run([*arguments, *where])
        out, err = self.capture.readouterr()
        return code, out, err

    def rows(self, name="smoke"):
        from quantarena.bench.store import Store

        return Store(self.results / name).rows()


@pytest.fixture
def real_page():
    """Ask for the real leaderboard."""


def fake_workload(name_or_path):
    from quantarena.bench.errors import UnknownName, did_you_mean
    from quantarena.bench.workloads.registry import WorkloadInfo

    if name_or_path != "emoji-t2i":
        hint = did_you_mean(name_or_path, ["emoji-t2i"])
        raise UnknownName(f"unknown workload {name_or_path!r}: {hint}")
    return WorkloadInfo(
        name="emoji-t2i",
        title="a fake",
        path=FAKES,
        steps=20,
        guidance=1.0,
        eta=0.0,
        resolution=32,
        conditions="none",
        prompts=(),
        reference="",
        licence="none",
        megabytes=1.0,
    )


def plain_page(module):
    """A leaderboard of one line: the real one takes seconds and has tests of its own."""

    def render(folder, *, grid_title, planned, command, ranking, loaded, claims, tables):
        (folder / "leaderboard.html").write_text(f"{grid_title}: {len(planned)} cells, {command}")
        return folder / "leaderboard.html"

    return SimpleNamespace(
        render=render,
        load_rows=lambda folder, known: known,
        write_ranking=lambda folder, loaded: folder / "ranking.json",
        beside=lambda work, rows: nullcontext(),
    )


@pytest.fixture
def bench(tmp_path, capsys, monkeypatch, request):
    """The command line over fake stages; with the real page where ``real_page`` is asked for."""
    from quantarena.bench.plan import lookup
    from quantarena.bench.report import publish
    from quantarena.bench.run import executors

    monkeypatch.setenv("QUANTARENA_CACHE", str(tmp_path / "index"))
    monkeypatch.syspath_prepend(str(FAKES))
    # Workers are other processes: they find the fakes by the environment.
    monkeypatch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
    monkeypatch.setattr(executors, "STAGES", "fake_stages")
    monkeypatch.setattr(lookup, "workload", fake_workload)
    monkeypatch.setattr(lookup, "workload_names", lambda: ("emoji-t2i",))
    if "real_page" not in request.fixturenames:
        monkeypatch.setattr(publish, "leaderboard", plain_page)
    yield Bench(tmp_path, capsys)
    sys.modules.pop("fake_stages", None)


@pytest.fixture
def sleeper():
    """A class of networks of which each call takes so many seconds, and is counted."""
    import time

    from torch import nn

    class Sleeper(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds, self.calls = seconds, 0

        def forward(self, sample, timestep, return_dict=True):
            self.calls += 1
            time.sleep(self.seconds)
            return (sample,)

    return Sleeper


@pytest.fixture
def card(monkeypatch):
    """A machine with one GPU, as far as the harness asks; what it holds is counted."""
    pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")
    import torch

    from quantarena.bench.devices import device
    from quantarena.bench.schema import Device
    from quantarena.bench.stages import sequence
    from quantarena.methods.core.cuda.device import interpreted_without_gpu
    from quantarena.methods.testing.pretend import pretended_cuda

    found = Device("cuda", "Pretended Card", "0", 2**30)
    monkeypatch.setattr(device, "require", lambda target: torch.device(target.device))
    monkeypatch.setattr(device.fit, "free_bytes", lambda place: found.memory_bytes)
    monkeypatch.setattr(sequence, "describe_device", lambda target: found)
    with interpreted_without_gpu():
        from quantarena.methods.testing import oracle_launch as leaves

        monkeypatch.setattr(leaves.CudaPackedLayer, "_launch", leaves.oracle_launch)
        with pretended_cuda() as memory:
            yield memory


SCRIPT = """
import subprocess
import sys
sys.path.insert(0, {here!r})
import conftest
from quantarena.bench.cli.main import run
from quantarena.bench.plan import lookup
from quantarena.bench.report import publish
from quantarena.bench.run import executors
executors.STAGES = {stages!r}
publish.leaderboard = conftest.plain_page
lookup.workload = conftest.fake_workload
lookup.workload_names = lambda: ("emoji-t2i",)
sys.path.insert(0, conftest.__file__.rpartition("/")[0] + "/fakes")
if __name__ == "__main__":
    code = run({arguments!r})
    {epilogue}
    sys.exit(code)
"""


@pytest.fixture
def command(tmp_path):
    """A command line over fake stages as arguments of a process of its own."""

    def make(bench, *arguments, epilogue="pass", stages="fake_stages"):
        given = [*arguments, "--results", str(bench.results)]
        here = str(Path(__file__).parent)
        script = tmp_path / "script.py"
        parts = {"arguments": given, "epilogue": epilogue, "stages": stages}
        script.write_text(SCRIPT.format(here=here, **parts))
        return [sys.executable, str(script)]

    return make


@pytest.fixture
def run_script(command):
    """Run such a process to its end."""

    def go(bench, *arguments, **rest):
        line = command(bench, *arguments, **rest)
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    return go
