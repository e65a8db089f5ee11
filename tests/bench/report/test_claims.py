import json
import shlex
from pathlib import Path

import pytest

from quantarena.bench.metrics.names import METRICS
from quantarena.bench.plan.presets import PRESETS
from quantarena.bench.report import claims
from quantarena.bench.report.claims import Claim, OfflineTrial, Verdict, judge_claims, load_claims
from quantarena.bench.workloads.papers import PAPERS
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.registry import names

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("claim", load_claims(), ids=lambda c: c.method)
def test_a_claim_names_what_exists(claim):
    assert claim.method in names()
    trial = claim.offline
    if trial.command:
        assert (ROOT / shlex.split(trial.command)[1]).is_file()
        assert (ROOT / trial.page).is_file()
    else:
        assert trial.than in names()
        assert trial.metric in METRICS
        assert set(trial.workloads) <= set(PRESETS["quick"].grid.workloads)
        assert set(trial.bits) <= set(PRESETS["quick"].grid.bits)
    words = shlex.split(claim.online)
    assert words[:2] == ["quantarena", "run"]
    assert words[2] in PRESETS
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--model"] in PAPERS
    assert set(options["--method"].split(",")) <= set(names())
    assert all(parse_bits(bits) for bits in options["--bits"].split(","))


def test_the_file_says_one_way_of_trying():
    with pytest.raises(ValueError, match="either than or command"):
        claims._claim({"method": "x", "offline": {}, "online": {"command": ""}})


def claim(method, than, bits="w4a8"):
    trial = OfflineTrial((bits,), than, "psnr", ("emoji-t2i", "emoji-dit"))
    return Claim(method, "-", "-", "better", "-", trial, "quantarena run paper")


@pytest.fixture
def done(bench):
    bench.behave(q_diffusion__w4a8="raise")
    bench("run", "smoke", "--seed", "0", "--seed", "1")
    return bench


def judged(done, *found, policy="uniform"):
    folder = done.results / "smoke"
    findings = judge_claims(found, [(folder, row) for row in done.rows("smoke")])
    return [finding for finding in findings if finding.policy == policy]


def test_verdicts_pool_the_seeds(done):
    here, there = judged(done, claim("q_diffusion", "rtn", "w4a4"))
    assert (here.workload, here.seeds, here.n) == ("emoji-t2i", 2, 32)
    assert here.low <= here.mean <= here.high
    assert here.other > 0
    assert there.verdict is Verdict.MISSING
    back = judged(done, claim("rtn", "q_diffusion", "w4a4"))[0]
    assert back.mean == pytest.approx(-here.mean)
    opposite = {Verdict.HOLDS: Verdict.OPPOSITE, Verdict.OPPOSITE: Verdict.HOLDS}
    assert back.verdict is opposite.get(here.verdict, Verdict.UNDECIDED)


def test_a_method_is_not_better_than_itself_and_failed_rows_do_not_count(done):
    assert judged(done, claim("rtn", "rtn"))[0].verdict is Verdict.UNDECIDED
    assert judged(done, claim("q_diffusion", "rtn"))[0].verdict is Verdict.MISSING


def test_rows_without_scores_are_as_if_not_run(done):
    for path in (done.results / "smoke/scores").iterdir():
        path.unlink()
    assert judged(done, claim("rtn", "rtn"))[0].verdict is Verdict.MISSING


def test_the_verb(done):
    code, out, _ = done("claims", "smoke", "--json")
    found = json.loads(out)
    assert code == 0
    pairs = {
        (f["claim"]["method"], f["workload"], f["bits"]): f
        for f in found["findings"]
        if f["policy"] == "uniform"
    }
    assert pairs["q_diffusion", "emoji-t2i", "w4a4"]["verdict"] in set(Verdict)
    assert pairs["q_diffusion", "emoji-t2i", "w4a8"]["verdict"] == "not measured"
    assert any(e["method"] == "ptq4dm" for e in found["experiments"])
    code, out, _ = done("claims", "smoke", "--method", "q_diffusion")
    table, missing = out.split("measure what is missing", 1)
    assert "uniform widths" in table
    assert "published widths" in table
    assert "quantarena run smoke --workload" in missing
    assert "--method q_diffusion,rtn --bits w4a8" in missing
    code, _, err = done("claims", "nothing")
    assert code == 2
    assert err.count("\n") == 1


def test_a_claim_is_tried_with_the_papers_own_widths_too(done):
    own = claim("q_diffusion", "rtn", "w4a4")
    assert judged(done, own, policy="published")[0].verdict is Verdict.MISSING
    done("run", "smoke", "--method", "q_diffusion", "--bits", "w4a4", "--policy", "published")
    there = judged(done, own, policy="published")[0]
    # one seed has the published row; rounding to nearest has no widths of its own
    assert (there.seeds, there.n) == (1, 16)
    assert judged(done, own)[0].seeds == 2
    assert claims.policy_of("rtn", "published") == "uniform"
    assert claims.policy_of("q_diffusion", "published") == "published"
    assert judged(done, claim("rtn", "q_diffusion"), policy="published") == []
    _, out, _ = done("claims", "smoke", "--method", "q_diffusion")
    commands = [line for line in out.splitlines() if "--policy published" in line]
    assert len(commands) == 1
    assert "--method q_diffusion --bits" in commands[0]
