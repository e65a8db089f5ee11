"""Plug-ins that are broken, or that print: one line, and stdout stays one JSON document."""

import json
import os
import subprocess
import sys

import pytest

HEAD = """
from quantarena.methods.api import Capabilities, Method, MethodInfo, register
INFO = MethodInfo(title="Mine", venue="-", paper="-", summary="x")
"""
CLASS = """
@register({name!r})
class Mine(Method):
    info = INFO
    supports = Capabilities()
    def quantize(self, ctx):
        return ctx.wrap()
"""
BAD = {
    "nothing": ("", "registers no method"),
    "syntax": ("def", "SyntaxError"),
    "bytes": ("\0", "fails to import"),
    "import": ("import absent_module", "ModuleNotFoundError"),
    "exit": ("import sys; sys.exit(0)", "SystemExit"),
    "base": ("class E(BaseException): pass\nraise E('out')", "E: out"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "deep": ("def f(): f()\nf()", "RecursionError"),
    "lines": ("raise ValueError('two\\nlines')", "two lines"),
    "surrogate": ("raise ValueError('\\ud800')", "ValueError: ?"),
    "function": (HEAD + "@register('mine')\ndef f(): ...", "is no class derived from Method"),
    "object": (HEAD + "register('mine')(3)", "3 is no class derived from Method"),
    "foreign class": (HEAD + "@register('mine')\nclass A: ...", "no class derived from Method"),
    "no info": (HEAD + CLASS.format(name="mine").replace("info = INFO", ""), "needs info = "),
    "info": (HEAD + CLASS.format(name="mine").replace("INFO\n", "'x'\n", 1), "needs info = "),
    "supports": (HEAD + CLASS.format(name="mine").replace("Capabilities()", "4"), "needs supports"),
    "abstract": (HEAD + CLASS.format(name="mine").replace("quantize", "other"), "define quantize"),
    "long name": (HEAD + CLASS.format(name="m" * 300), "take up to 64 letters"),
    "comma": (HEAD + CLASS.format(name="a,b"), "take up to 64 letters"),
    "empty name": (HEAD + CLASS.format(name=""), "take up to 64 letters"),
    "no text": (HEAD + CLASS.format(name=3), "take up to 64 letters"),
}


def written(bench, text, name="mine.py"):
    file = bench.root / name
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("kind", BAD)
def test_broken_files(kind, bench, survives, tried):
    text, line = BAD[kind]
    file = written(bench, text)
    for verb in ("run", "plan"):
        _, _, err = survives(verb, "smoke", "--method", "mine", "--plugin", file, codes=(2,))
        assert line in err
        assert len(err.splitlines()) == 1
        tried("plug-ins")
    survives("ls", "methods", "--plugin", file, codes=(2,), results=False)
    assert not (bench.results / "smoke").exists()


def test_a_plugin_named_like_a_builtin_is_not_ignored(bench, survives, tried):
    file = written(bench, HEAD + CLASS.format(name="rtn"))
    for verb in ("run", "plan"):
        _, _, err = survives(verb, "smoke", "--plugin", file, codes=(2,))
        assert "plugin mine.py registers method 'rtn', which is built in" in err
        assert "--prefer-plugin" in err
        tried("plug-ins")
    survives("plan", "smoke", "--plugin", file, "--prefer-plugin", codes=(0,))
    other = written(bench, HEAD + CLASS.format(name="rtn"), "other.py")
    both = ("--plugin", file, "--plugin", other, "--prefer-plugin")
    _, _, err = survives("run", "smoke", *both, codes=(2,))
    assert "both register method 'rtn': rename one" in err
    tried("plug-ins")


def test_an_installed_package_named_like_a_builtin_is_not_ignored(bench, tmp_path, tried):
    """In processes of their own, whose path holds the package."""
    site = tmp_path / "site"
    folder = site / "other-1.5.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.5\n")
    (folder / "entry_points.txt").write_text("[quantarena.methods]\nrtn = other_rtn\n")
    (site / "other_rtn.py").write_text(HEAD + CLASS.format(name="rtn"))
    code = "import sys; from quantarena.bench.cli.main import run; sys.exit(run(sys.argv[1:]))"
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])

    def planned(*words):
        words = ["plan", "smoke", "--results", str(tmp_path / "results"), *words]
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )

    clash = planned("--method", "rtn")
    assert (clash.returncode, clash.stdout) == (2, "")
    assert clash.stderr.startswith(
        "error: package other 1.5 registers method 'rtn', which is built in: add --prefer-plugin"
    )
    assert clash.stderr.count("\n") == 1
    tried("plug-ins")
    assert planned("--method", "rtn", "--prefer-plugin").returncode == 0
    assert planned("--method", "ptq4dm").returncode == 0, "it is not in the way of others"


PRINTS = {
    "print": "print('noise')",
    "descriptor": "import os; os.write(1, b'noise')",
    "shell": "import os; os.system('echo noise')",
    "c": "import ctypes; ctypes.CDLL(None).puts(b'noise')",
    "stream": "import sys; sys.__stdout__.write('noise')",
    "print at exit": "import atexit; atexit.register(print, 'noise')",
    "write at exit": "import atexit, os; atexit.register(os.write, 1, b'noise')",
    "closed": "import os; os.close(1)",
    "thread": "import threading, os; threading.Timer(0, os.write, (1, b'noise')).start()",
}


@pytest.mark.parametrize("kind", PRINTS)
def test_what_a_plugin_prints_is_not_on_stdout(kind, tmp_path, tried):
    file = tmp_path / "mine.py"
    file.write_text(HEAD + CLASS.format(name="mine") + PRINTS[kind])
    code = "from quantarena.bench.cli.main import main; main()"
    words = ["ls", "methods", "--json", "--plugin", str(file)]
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "mine" in {row["name"] for row in json.loads(ran.stdout)}
    assert kind == "closed" or b"noise" in ran.stderr
    tried("plug-ins")
