import subprocess
import sys

from quantarena.bench.metrics.names import FIDELITY, INCEPTION, METRICS, QUALITY, TEXT, VIDEO


def test_names_are_complete_and_apart():
    assert tuple(METRICS) == FIDELITY + VIDEO + QUALITY + TEXT + INCEPTION
    assert all(name == info.name for name, info in METRICS.items())
    assert {info.board for info in METRICS.values()} == {"fidelity", "quality"}


def test_no_bare_fid():
    for name in METRICS:
        assert name not in {"fid", "kid", "clip"}
        assert "inception" in name or not name.startswith("fid")


def test_listing_needs_no_torch():
    code = (
        "import sys, quantarena.bench.metrics.names;"
        "assert not {'torch', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_the_modules_does_not_import_torchmetrics():
    code = (
        "import sys, quantarena.bench.stages.score;"
        "assert 'torchmetrics' not in sys.modules, 'seconds for those who only read'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
