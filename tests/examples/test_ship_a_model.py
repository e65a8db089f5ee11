"""The example script from a tiny model to pictures by its packed network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "ship_a_model.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_compares_exports_loads_and_draws(pixel_folder, tmp_path):
    words = ("--workload", str(pixel_folder), "--methods", "rtn,ptqd", "--bits", "w8a8")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--images", "8", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ quantarena quantize" in done.stdout
    assert (tmp_path / "out/packed/manifest.json").is_file()
    with Image.open(tmp_path / "out/images.png") as sheet:
        assert sheet.size == (64, 16)
        assert len(set(sheet.getdata())) > 100  # pictures, not one colour
