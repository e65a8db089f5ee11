"""What ``--address`` refuses, each in one line, before anything starts."""

import os
import subprocess
import sys

import pytest

from quantarena.bench.cluster.session import checked_address
from quantarena.bench.errors import UserError
from quantarena.bench.plan.plan import choose_fan
from quantarena.bench.target import DEFAULT_TARGET, Target


@pytest.mark.parametrize("text", ["auto", "10.0.0.1:6379", "head.example:1", "[fe80::1]:6379"])
def test_addresses(text):
    assert checked_address(text) == text


@pytest.mark.parametrize(
    "text", ["", "local", "10.0.0.1", ":6379", "a:0", "a:65536", "a:b", "http://a:1", "a b:1"]
)
def test_what_is_none(text):
    with pytest.raises(UserError, match="write auto, or HOST:PORT"):
        checked_address(text)


def test_rays_client_is_refused_with_the_reason(bench):
    code, out, err = bench("run", "smoke", "--address", "ray://head:10001")
    assert (code, out) == (2, "")
    assert "run the command on a machine of the cluster" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--executor", "local"), "--executor local in this process"),
        (("--device", "mps"), "the cluster chooses the device"),
        (("--device", "cuda:1"), "take --device cuda"),
    ],
)
def test_options_that_contradict_it(bench, options, reason):
    code, out, err = bench("plan", "smoke", "--address", "auto", *options)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_a_gpu_that_this_machine_lacks_is_the_nodes_affair(bench):
    code, out, err = bench("plan", "smoke", "--address", "auto", "--device", "cuda")
    assert code == 0, err
    assert "on the cluster at auto" in out


def test_the_plan_names_the_cluster():
    fan = choose_fan("auto", 7, 50, DEFAULT_TARGET, "auto")
    assert (fan.executor, fan.workers, fan.address) == ("cluster", 7, "auto")
    assert choose_fan("auto", 8, 50, Target("cuda"), "auto").executor == "cluster"
    assert choose_fan("auto", 8, 2, DEFAULT_TARGET, "auto").workers == 2


def test_no_cluster_is_told_in_one_line(bench):
    code, out, err = bench("run", "smoke", "-q", "--address", "127.0.0.1:1")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --address 127.0.0.1:1: Ray did not let")


@pytest.mark.slow
def test_nobody_joins_the_private_ray_of_another_run(bench):
    """``auto`` finds any Ray of this machine."""
    code = (
        "import sys\n"
        "from quantarena.bench.run.ray_session import start_ray\n"
        "start_ray(1); print('there', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert other.stdout.readline() == "there\n"
        code, out, err = bench("run", "smoke", "-q", "--address", "auto")
        assert (code, out) == (2, "")
        assert "private to another run" in err
        assert err.count("\n") == 1
    finally:
        other.stdin.close()
        other.wait(timeout=60)
