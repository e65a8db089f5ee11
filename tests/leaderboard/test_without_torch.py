"""These tests stand by themselves: they need no file outside this folder, and no torch."""

import os
import subprocess
import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
CODE = """
import sys
import pytest
# Without the plug-ins and without rewritten asserts it takes a third of the time.
plain = ["-o", "addopts=--import-mode=importlib", "--assert=plain", "-p", "no:cacheprovider"]
code = pytest.main(["--collect-only", "-q", *plain, "--confcutdir", sys.argv[1], sys.argv[1]])
print(int(code), sorted({"torch", "diffusers", "ray"} & set(sys.modules)))
"""


def test_collecting_this_folder_imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", CODE, HERE],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
