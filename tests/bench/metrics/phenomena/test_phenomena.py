"""The table of phenomena sees structure that was planted, each line its own."""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.bench.cli.main import run
from quantarena.bench.metrics.phenomena import statistics
from quantarena.bench.metrics.phenomena.table import markdown, phenomena
from quantarena.bench.report.phenomena import HEADING, measured, section, with_section
from quantarena.bench.workloads import registry
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace

tiny_pipelines = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[2] / "tiny_pipelines.py"))
)
MEDIAN, TAIL, TIME, SKIP, CHANNELS, TOKENS, FIRST = range(7)


class Network(nn.Module):
    """A skip concatenation, tokens and cross-attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.deep, self.join = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), None
        self.join = nn.Conv2d(64, 32, 1)
        self.norm = nn.LayerNorm(32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(8, 32), nn.Linear(8, 32)
        self.o, self.last = nn.Linear(32, 32), nn.Conv2d(32, 3, 1)
        self.cross = Cross()
        self.loud = 1.0

    def forward(self, sample, timestep, context, return_dict=True):
        x = self.first(sample * (1 + self.loud * timestep.reshape(-1, 1, 1, 1) / 10))
        h = self.join(torch.cat([self.deep(F.silu(x)), x], dim=1))
        tokens = self.norm(h.flatten(2).mT)
        mixed = self.cross(self.q(tokens), self.k(context), self.v(context))
        h = h + self.o(mixed).mT.reshape(h.shape)
        return (self.last(F.silu(h)),)


class Cross(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


@pytest.fixture
def network():
    return Network().eval()


def values(network):
    """Median and largest of each line."""
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(4, 6, 3, 8, 8, generator=generator)
    context = torch.randn(6, 5, 8, generator=generator).expand(4, 6, 5, 8)
    recorded = Trajectory(sample, torch.tensor([9.0, 6.0, 3.0, 0.0]), {"context": context})
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    graph = trace(network, first.sample, timestep=first.timestep, **first.conditions)
    return [(line.median, line.largest) for line in phenomena(network, graph, recorded)]


def changed(before, after):
    """The lines whose values differ by more than a thousandth."""

    def same(one, other):
        return all(
            a is b or math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, other, strict=True)
        )

    return {
        k for k, (one, other) in enumerate(zip(before, after, strict=True)) if not same(one, other)
    }


def test_all_lines_have_layers(network):
    assert all(median is not None for median, _ in values(network))


@torch.no_grad()
def test_a_planted_outlier_channel_changes_kurtosis_and_outliers_and_nothing_else(network):
    before = values(network)
    network.norm.weight[5] *= 64
    network.norm.bias[5] *= 64
    network.q.weight[:, 5] /= 64
    louder = values(network)
    assert CHANNELS in changed(before, louder) <= {MEDIAN, TAIL, CHANNELS, TOKENS}
    assert louder[CHANNELS][1] > 20 * before[CHANNELS][1] / 2
    network.norm.weight[5] /= 64**2
    network.norm.bias[5] /= 64**2
    network.q.weight[:, 5] *= 64**2
    quieter = values(network)
    assert TAIL in changed(before, quieter) <= {MEDIAN, TAIL, CHANNELS, TOKENS}
    assert quieter[TAIL][1] > 2 * before[TAIL][1]


@torch.no_grad()
def test_a_louder_deep_half_changes_the_line_of_halves(network):
    before = values(network)
    for part in (network.deep.weight, network.deep.bias):
        part *= 8
    network.join.weight[:, :32] /= 8
    after = values(network)
    # Half of the join's channels are louder, so its largest is further above its median too.
    assert SKIP in changed(before, after) <= {SKIP, MEDIAN, TAIL, CHANNELS}
    assert after[SKIP][0] == pytest.approx(8 * before[SKIP][0], rel=1e-3)


def test_inputs_that_grow_over_time_change_the_line_of_calls(network):
    before = values(network)
    network.loud = 10.0
    after = values(network)
    assert after[TIME][1] > 2 * before[TIME][1]


@torch.no_grad()
def test_a_start_token_that_draws_attention_is_seen(network):
    before = values(network)
    network.q.weight.zero_()
    network.q.bias.zero_()
    assert values(network)[FIRST] == (pytest.approx(1.0), pytest.approx(1.0))
    assert before[FIRST][0] != pytest.approx(1.0, abs=1e-4)


def test_statistics_have_their_values_by_hand():
    torch.manual_seed(0)
    assert statistics.kurtosis(torch.randn(2, 200_000)).tolist() == pytest.approx([3, 3], abs=0.1)
    assert statistics.kurtosis(torch.tensor([[1.0, -1.0, 1.0, -1.0]])).tolist() == [1.0]
    assert statistics.kurtosis(torch.ones(3, 4)).tolist() == []
    peaks = torch.tensor([[1.0, 100.0, 3.0], [2.0, 400.0, 3.0]])
    assert statistics.range_by_call(peaks) == 2.0  # ratios 2, 4 and 1
    assert math.isnan(statistics.range_by_call(torch.zeros(2, 3)))
    assert statistics.deep_over_skip(torch.tensor([6.0, 6.0, 2.0, 2.0, 99.0]), (2, 3)) == 3.0
    assert statistics.largest_over_median(torch.tensor([1.0, 2.0, 8.0])) == 4.0


def test_the_first_key_of_a_masked_attention_counts_the_keys_that_are_seen():
    query, key = torch.zeros(1, 3, 4), torch.randn(1, 5, 4)
    hidden = torch.tensor([True, True, False, False, False])
    added = torch.zeros(5).masked_fill(~hidden, -1e9)
    for mask in (None, hidden, added):
        assert statistics.first_key_share(query, key, mask, None) == pytest.approx(1.0)
    query = key[:, :1].expand(1, 3, 4) * 50
    assert statistics.first_key_share(query, key[:, :1].repeat(1, 2, 1), None, None) == 1.0
    assert (
        statistics.first_key_share(query, torch.cat([key[:, :1], -key[:, :1]], 1), None, 1.0) == 2
    )


def test_a_pipeline_is_measured_by_the_verb(tmp_path, capsys):
    torch.manual_seed(0)
    folder = tiny_pipelines.save("sd1", tmp_path / "sd1")
    (folder / "workload.json").write_text(
        '{"steps": 2, "resolution": 16, "conditions": {"kind": "prompt", "values": ["a cat"]}}'
    )
    words = ["phenomena", str(folder), "--cache", str(tmp_path / "cache"), "--json"]
    assert run(words) == 0
    plain = json.loads(capsys.readouterr().out)["phenomena"]
    assert run([*words, "--set", "outliers=4"]) == 0
    planted = json.loads(capsys.readouterr().out)["phenomena"]
    assert [line["name"] for line in plain] == [line["name"] for line in planted]
    assert all(line["layers"] for line in plain)
    assert planted[CHANNELS]["largest"] > 2 * plain[CHANNELS]["largest"]
    assert planted[TAIL]["median"] > plain[TAIL]["median"]
    for line in (TIME, FIRST):
        assert planted[line]["median"] == pytest.approx(plain[line]["median"], rel=1e-3)


def test_the_section_replaces_an_earlier_one(network):
    card = "# m\n\n## Numbers\n| a |\n\nThe weights are stored in fp16.\n"
    once = with_section(card, ())
    assert once.index("## Numbers") < once.index(HEADING) < once.index("The weights")
    assert with_section(once, ()) == once
    assert with_section("# m\n", ()).endswith(section(()))


def rows(table):
    """The lines of a table: name, and its numbers."""
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")][2:]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.mark.parametrize("name", ["emoji-dit", "cifar10-uncond", "emoji-t2i"])
def test_cards_hold_what_is_measured(name, tmp_path):
    card = (registry.ZOO / name / "README.md").read_text(encoding="utf-8")
    told = rows(card.split(HEADING)[1])
    found = rows(markdown(measured(name, tmp_path)))
    assert told.keys() == found.keys()
    for line, (neutral, layers, *numbers) in found.items():
        assert told[line][:2] == [neutral, layers]
        for ours, theirs in zip(numbers, told[line][2:], strict=True):
            if ours == "-":
                assert theirs == "-"
            else:  # another processor sums in another order, and images drift with it
                assert float(ours) == pytest.approx(float(theirs), rel=0.05)
