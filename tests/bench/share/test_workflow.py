"""The shell part of the workflow that checks submissions, on a pull request of our own making."""

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

WORKFLOW = Path(__file__).parents[3] / ".github" / "workflows" / "submission.yml"
FAKE = """#!/bin/sh
echo "$PWD $*" >> "$CALLS"
case "$2" in *bad*) exit 1 ;; esac
"""


def step():
    """The script of the last step."""
    text = WORKFLOW.read_text(encoding="utf-8")
    (script,) = re.findall(r"working-directory: proposed\n\s+run: \|\n(.*)\Z", text, re.DOTALL)
    return textwrap.dedent(script)


@pytest.fixture
def pull_request(tmp_path):
    """Make a pull request that adds files, and run the step; gives its code, calls and output."""
    repository = tmp_path / "workspace" / "proposed"
    repository.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "temp").mkdir()
    fake = tmp_path / "bin" / "quantarena"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    environment = {
        **{name: os.environ[name] for name in ("HOME",) if name in os.environ},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path / "temp"),
        "GITHUB_WORKSPACE": str(tmp_path / "workspace"),
        "CALLS": str(calls),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }

    def git(*words):
        name = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.hooksPath=/dev/null")
        done = subprocess.run(
            ["git", *name, *words], cwd=repository, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(names, gone=()):
        for name in names:
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        for name in gone:
            (repository / name).unlink()
            (repository / name).parent.rmdir()
        git("add", "-A")
        git("commit", "-qm", "more")
        return git("rev-parse", "HEAD")

    def run(before, after, gone=()):
        git("init", "-q")
        base = commit(before)
        commit(after, gone)
        done = subprocess.run(
            ["bash", "-c", step()],
            cwd=repository,
            env=environment | {"BASE": base},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, calls.read_text().splitlines(), done.stdout + done.stderr

    return run


def folder(line):
    return line.split(" verify ")[1].split("/submissions/")[1].removesuffix(" --quiet")


def test_each_changed_submission_is_verified_once(pull_request):
    before = ["README.md", "submissions/old/manifest.json"]
    after = ["submissions/a/manifest.json", "submissions/a/rows/x.json", "submissions/b/x", "x.py"]
    code, calls, _ = pull_request(before, after)
    assert code == 0
    assert sorted(map(folder, calls)) == ["a", "b"]
    assert all(not line.startswith("/proposed") and "/temp " in line for line in calls)


def test_one_bad_submission_fails_and_the_others_are_still_checked(pull_request):
    code, calls, _ = pull_request(["x"], ["submissions/a-bad/m", "submissions/b/m"])
    assert code == 1
    assert sorted(map(folder, calls)) == ["a-bad", "b"]


@pytest.mark.parametrize(
    "name", ["$(touch pwned)", "`touch pwned`", "--help", "a b", "a\nb", ".git-like", "a;touch x"]
)
def test_names_are_data(pull_request, name, tmp_path):
    code, calls, out = pull_request(["x"], [f"submissions/{name}/m"])
    if name == "--help":  # its letters are allowed; it comes behind ./ and is no option
        assert [folder(line) for line in calls] == ["--help"]
        return
    assert code == 1
    assert calls == []
    assert "::error::" in out
    assert not list(tmp_path.rglob("pwned"))


def test_a_deleted_submission_is_not_asked_for(pull_request):
    code, calls, _ = pull_request(["submissions/a/m", "y"], ["z"], gone=["submissions/a/m"])
    assert (code, calls) == (0, [])


def test_links_in_the_place_of_submissions(pull_request, tmp_path):
    (tmp_path / "elsewhere" / "x").mkdir(parents=True)
    repository = tmp_path / "workspace" / "proposed"
    (repository / "submissions").symlink_to(tmp_path / "elsewhere")
    code, calls, out = pull_request(["y"], ["z"])
    assert (code, calls) == (1, [])
    assert "::error::" in out


def test_the_workflow_gives_a_stranger_nothing():
    text = WORKFLOW.read_text(encoding="utf-8")
    assert "pull_request_target" not in text
    assert "secrets." not in text
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")
    assert "permissions:\n  contents: read" in text
    # what a stranger names never stands in a script as text
    assert "${{" not in step()
