"""The command line over fake stages, as in ``tests/bench``, and the counts of tried inputs."""

import importlib.util
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

# The tests here share a module of ways to damage things.
sys.path.append(str(Path(__file__).parent))
_spec = importlib.util.spec_from_file_location(
    "bench_conftest", Path(__file__).parent.parent / "bench" / "conftest.py"
)
_bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_bench)
bench, real_page = _bench.bench, _bench.real_page

COUNTS = Counter()
"""Number of bad inputs that were tried, by their kind."""


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(COUNTS.items()))
        terminalreporter.write_line(f"bad inputs tried: {COUNTS.total()} ({counts})")


@pytest.fixture
def tried():
    """Count a bad input of a kind."""

    def count(kind, number=1):
        COUNTS[kind] += number

    return count


@pytest.fixture
def done(bench):
    """A finished run of five cells."""
    assert bench("run", "smoke", "-q")[0] == 0
    return bench


@pytest.fixture
def survives(bench):
    """Run a command line with bad input: no traceback, a known exit code, one line or one JSON.

    A traceback is an exception here, since the command line runs in this process.
    """

    def go(*arguments, codes=(0, 1, 2), results=True):
        code, out, err = bench(*arguments, "--json", results=results)
        assert code in codes, (arguments, code, err)
        if code == 2:
            assert out == "", arguments
            lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
            assert lines[-1].startswith("error: "), (arguments, err)
            return code, None, err
        # JSON as others read it: no NaN, no text that has no UTF-8 form.
        text = json.loads(out, parse_constant=pytest.fail)
        json.dumps(text, ensure_ascii=False).encode()
        return code, text, err

    return go


@pytest.fixture
def refuses(capsys):
    """Run a command line of the real verbs: a known exit code, and one line if that is 2.

    A pipe in the place of a file must not block: after half a minute this raises.
    """

    def late(signum, frame):
        raise TimeoutError("the command waits for ever")

    def go(*arguments, codes=(2,)):
        from quantarena.bench.cli.main import run

        capsys.readouterr()
        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(30)
        try:
            code = run([str(a) for a in arguments])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        err = capsys.readouterr().err
        assert code in codes, (arguments, code, err)
        if code == 2:
            assert err.startswith("error: "), (arguments, err)
            assert err.count("\n") == 1, (arguments, err)
        return err

    return go
