import json

import pytest

from quantarena.bench.cli.main import run

FEW = ("--models", "8", "--votes", "25", "--runs", "2", "--quiet")


@pytest.fixture
def cli(capsys):
    """Runs a command line; returns the exit code, stdout and stderr."""

    def called(*words):
        code = run([str(word) for word in words])
        return (code, *capsys.readouterr())

    return called


def test_a_table_for_people(cli):
    code, out, _ = cli("simulate-ranking", *FEW, "--engine", "joint,elo")
    assert code == 0
    assert "8 models, noise 0.5, 0 % random votes, 2 runs" in out
    assert "votes to tau 0.9" in out
    assert "image views" in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["joint", "elo"]


def test_one_document_and_a_plot(cli, tmp_path):
    plot = tmp_path / "curves.svg"
    code, out, _ = cli("simulate-ranking", *FEW, "--engine", "ksort", "--plot", plot, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["plot"] == str(plot)
    (outcome,) = document["outcomes"]
    assert outcome["engine"] == "ksort"
    assert outcome["setup"]["regime"] == {"noise": 0.5, "random": 0.0, "truth": "even"}
    assert len(outcome["curve"]) == 25
    assert plot.read_text().startswith("<svg")


def test_equal_seeds_give_equal_documents(cli):
    runs = [cli("simulate-ranking", *FEW, "--seed", seed, "--json")[1] for seed in ("5", "5", "6")]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--engine", "jiont"), "unknown engine 'jiont': did you mean joint?"),
        (("--matches", "near"), "unknown way to choose matches 'near'"),
        (("--truth", "odd"), "unknown truth 'odd'"),
        (("--k", "12"), "Invalid value for '--k'"),
        (("--plot", "x.png"), "name it *.svg"),
        (("--engine", "elo", "--matches", "value"), "gives scores without uncertainty"),
    ],
)
def test_mistakes_are_one_line(cli, words, line):
    code, out, err = cli("simulate-ranking", *FEW, *words)
    assert (code, out) == (2, "")
    assert line in err
