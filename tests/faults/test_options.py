"""Bad options of every verb: exit code 2 and one line, and nothing is written."""

import pytest

TEXTS = (
    "",
    " ",
    ",",
    "rtn,",
    "\0",
    "x" * 300,
    "../x",
    "a/b",
    "\ud800",
    "nan",
    "-1",
    "1e400",
    "%s",
    "?",
)
NUMBERS = ("", "x", "-1", "0.5", "nan", "inf", "1e400", str(2**63), "9" * 400)
OPTIONS = {
    "--workload": TEXTS,
    "--method": TEXTS,
    "--bits": (*TEXTS, "w0a8", "w99a99", "wa", "w4a8,"),
    "--variant": (*TEXTS, "nope", "Paper"),
    "--policy": (*TEXTS, "nope"),
    "--set": (*TEXTS, "steps=", "=1", "guidanc=3", "steps=0", "eta=2", "column=a"),
    "--option": (*TEXTS, "rtn.x=1", "rtn.=1", ".x=1", "nope.x=1", "rtn.x"),
    "--plugin": TEXTS,
    "--name": ("", " x", ".", "..", ".x", "a/b", "a\\b", "x\ny", "n" * 300, "\ud800", "\0"),
    "--executor": TEXTS,
    "--seed": NUMBERS,
    "--images": (*NUMBERS, "0"),
    "--steps": (*NUMBERS, "0"),
    "--iterations": (*NUMBERS, "0"),
    "--workers": (*NUMBERS, "0"),
    "--timeout": ("", "x", "-1", "nan", "inf", "-inf", "1e400", "1e300"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_run_and_plan(option, bench, survives, tried):
    for value in OPTIONS[option]:
        survives("run", "smoke", option, value, codes=(2,))
        if option != "--timeout":
            survives("plan", "smoke", option, value, codes=(2,))
        tried("options")
    assert not (bench.results / "smoke").exists()


NAMES = ("nope", "", "x" * 300, "\0", "\ud800", "..", "a/b")


@pytest.mark.parametrize("verb", ["rank", "render", "show", "claims", "compare", "export"])
def test_verbs_that_read(verb, done, survives, tried):
    before = sorted(path for path in done.results.rglob("*.json"))
    for name in NAMES:
        arguments = {"compare": (name, "rtn@w4a8"), "export": ("csv", name)}.get(verb, (name,))
        if (verb, name) != ("export", ".."):
            survives(verb, *arguments, codes=(2,))
            tried("options")
    assert sorted(path for path in done.results.rglob("*.json")) == before


def test_filters_of_claims_and_of_runs(done, survives, tried):
    for method in NAMES[:1] + NAMES[2:]:
        survives("claims", "smoke", "--method", method, codes=(2,))
        tried("options")
    assert "no claim of a method" in survives("claims", "smoke", "--method", "nope")[2]
    for name in NAMES:
        survives("show", "rtn@w4a4", "--in", name, codes=(2,))
        tried("options")


@pytest.mark.parametrize("name", ["sse9", "AVX2", " ", "x" * 300])
def test_kernels_that_do_not_exist(name, survives, monkeypatch, tried):
    from quantarena.methods.core.kernels import native

    monkeypatch.setenv("QUANTARENA_KERNELS", name)
    native.library.cache_clear()
    for verb in (("run", "smoke"), ("plan", "smoke"), ("check-method", "rtn")):
        arguments = {"results": verb[0] != "check-method"}
        _, _, err = survives(*verb, codes=(2,), **arguments)
        assert f"QUANTARENA_KERNELS={name}"[:60] in err
        tried("options")
    native.library.cache_clear()
