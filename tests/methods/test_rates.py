"""Every learned rate belongs to a length: how far parameters may travel in short and long runs.

The adapters run as they are, on a tiny network. Only the number of steps is cut, after it was
written down; the rates are read from the parameter groups of the optimisers that they made.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, fields, replace

import pytest
import torch

from quantarena.bench.plan.presets import PRESETS
from quantarena.methods.builtin import builtins
from quantarena.methods.core.bits import Bits
from quantarena.methods.info import Effort
from quantarena.methods.registry import method_entry
from quantarena.methods.techniques.distill import distill as whole_network
from quantarena.methods.techniques.distill import serial_parallel
from quantarena.methods.techniques.learn import optimise as block_loop
from quantarena.methods.techniques.learn import reconstruct
from quantarena.methods.techniques.learn.param_groups import Optimiser
from quantarena.methods.techniques.learn.schedule import Schedule, paced
from quantarena.methods.techniques.scaling import channel_clips

QUICK = PRESETS["quick"].grid.budget.iterations
METHODS = sorted(name for name, known in builtins().items() if not known.rival and name != "fp")
LEARN_NOTHING = {"mixed_rtn", "ptq4dm", "rtn", "svdquant", "vidit_q"}
LONGEST, SHORTEST = 16.0, 1 / 6
"""The band: travel of 16 times and of a quarter of quick's iterations, relative to quick's own."""
FARTHEST = {"rounding": 60.0, "weight": 4.0, "lora": 1.6, "act_zero": 1.0, "clip": 5.0}
"""Farthest travel at any length: in codes, or in the own variables of roundings and clips."""
SCALES = 3.0
"""The same of scales and gains, in shares of themselves."""
ADAROUND = {"rounding": 0.1}
AT_QUICK = {
    "dgq": ADAROUND,
    "dilate_quant": {"weight": 0.02, "weight_scale": 5e-3, "act_scale": 5e-3, "act_zero": 0.01},
    "eda_dm": {"rounding": 0.05, "act_scale": 5e-3},
    "efficient_dm": {"lora": 0.02, "weight_scale": 2e-3, "act_scale": 5e-3},
    "mpq_dm": {"lora": 0.01, "weight_scale": 2e-3, "act_scale": 5e-3},
    "ptqd": ADAROUND | {"act_scale": 5e-3},
    "q_diffusion": ADAROUND | {"act_scale": 5e-3},
    "quest": ADAROUND | {"weight": 5e-3, "act_scale": 5e-3},
    "repquant": {"clip": 0.05},
    "serial_to_parallel": {"weight": 5e-3, "weight_scale": 1e-3, "act_scale": 1e-3},
    "tfmq_dm": ADAROUND,
    "tuneqdm": {"gain_in": 2e-3, "gain_out": 2e-3},
}
"""Rates that the rows of preset quick were made with, before all of them belonged to a length."""


@dataclass
class Travel:
    """One training.

    Attributes:
        updates: steps of its optimiser.
        far: what these may move, updates times rate, by group, in the parameter's own unit.
        rates: the rates as the adapter states them.
    """

    updates: int
    far: dict[str, float]
    rates: dict[str, float]


@pytest.fixture
def trained(monkeypatch):
    """Run a method with its options; returns its trainings."""

    def run(name, context, **options):
        with monkeypatch.context() as patch:
            return watched(patch, name, context, options)

    def watched(patch, name, context, options):
        found: list[Travel] = []
        updates = [0]

        class Spied(Optimiser):
            def __init__(self, parameters, groups):
                super().__init__(parameters, groups)
                banks = {id(e): id(b.parameter) for b in self._banks for e in b.entries}
                of = {
                    id(m.parameter): (group, m.unit)
                    for group, members in parameters.items()
                    for m in members
                }
                far = defaultdict(float)
                for given in self._adam.param_groups:
                    for parameter in given["params"]:
                        group, unit = of[banks.get(id(parameter), id(parameter))]
                        far[group] = max(far[group], given["lr"] / unit * updates[0])
                rates = {group: groups[group].lr for group in far}
                found.append(Travel(updates[0], dict(far), rates))

        for module in (block_loop, whole_network, serial_parallel):
            patch.setattr(module, "Optimiser", Spied)
        optimise = block_loop.optimise

        def of_block(problem, learning, schedule, generator):
            updates[0] = schedule.iterations
            return optimise(problem, learning, replace(schedule, iterations=1), generator)

        patch.setattr(reconstruct, "optimise", of_block)
        method = method_entry(name)
        module = sys.modules[method.__module__]

        def cut(name, steps_of, cut_short):
            if original := getattr(module, name, None):

                def spied(*args, **rest):
                    args = list(args)
                    updates[0], args[3] = steps_of(*args), cut_short(args[3])
                    return original(*args, **rest)

                patch.setattr(module, name, spied)

        cut("distill", lambda *a: a[3].updates, lambda s: replace(s, updates=1))
        cut(
            "distill_on_student_walks",
            lambda *a: a[3].updates(a[2]),
            lambda s: replace(s, rounds=1, images=1),
        )
        if hasattr(module, "learn_clips"):

            class Adam(torch.optim.Adam):
                def __init__(self, params, lr):
                    super().__init__(params, lr)
                    found.append(Travel(updates[0], {"clip": lr * updates[0]}, {"clip": lr}))

            def learn_clips(*args, steps, **rest):
                updates[0] = steps
                return channel_clips.learn_clips(*args, steps=1, **rest)

            patch.setattr(torch.optim, "Adam", Adam)
            patch.setattr(module, "learn_clips", learn_clips)
        method(method.Options(**options)).run(context)
        return found

    return run


def farthest(trainings):
    """The farthest travel by group, over all trainings of a run."""
    far = defaultdict(float)
    for training in trainings:
        for group, value in training.far.items():
            far[group] = max(far[group], value)
    return dict(far)


@pytest.fixture
def lengths(pixel, trained):
    """The trainings of a method at a factor of quick's iterations."""

    def run(name, factor, **options):
        bits = Bits(4, 16) if name == "tuneqdm" else Bits(4, 8)
        effort = Effort(32, round(QUICK * factor), 32)
        return trained(name, pixel.context(bits, "paper", effort), **options)

    return run


@pytest.mark.parametrize("name", METHODS)
def test_travel_stays_in_its_band_at_every_length(name, lengths):
    """A shorter run travels less, as it has fewer updates; a longer one has a bound."""
    at = {factor: farthest(lengths(name, factor)) for factor in (1 / 4, 1, 16)}
    assert all(at.values()) == (name not in LEARN_NOTHING)
    for group, here in at[1].items():
        assert SHORTEST <= at[1 / 4][group] / here <= 1, group
        assert 1 <= at[16][group] / here <= LONGEST, group
        assert at[16][group] <= FARTHEST.get(group, SCALES) * (1 + 1e-9), group


@pytest.mark.parametrize("name", AT_QUICK)
def test_rates_of_quick_are_those_of_its_rows(name, lengths):
    found = {}
    for training in lengths(name, 1):
        found |= training.rates
    assert found == AT_QUICK[name], "bit for bit"


def test_every_method_that_learns_has_its_rates_of_quick_written_down():
    assert set(AT_QUICK) == set(METHODS) - LEARN_NOTHING


OPTIONS = [
    (name, field.name)
    for name in METHODS
    for field in fields(method_entry(name).Options)
    if field.name.endswith("lr")
]


@pytest.mark.parametrize("factor", [1 / 4, 16])
@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_rate_that_is_given_acts_at_every_length(name, option, factor, lengths):
    """Twice the rate is twice as far: no option is cut to a bound in silence."""
    plain = farthest(lengths(name, factor))
    default = getattr(method_entry(name).Options(), option)
    twice = farthest(lengths(name, factor, **{option: 2 * default}))
    moved = {group: twice[group] / plain[group] for group in plain}
    assert all(ratio == pytest.approx(1) or ratio == pytest.approx(2) for ratio in moved.values())
    assert any(ratio == pytest.approx(2) for ratio in moved.values())


def test_the_rule_at_its_edges():
    assert paced(0.01, 160, 160) == paced(0.01, 160, 0) == 0.01
    assert paced(0.01, 160, 320) == 0.005
    assert Schedule.adaround(20_000).groups["rounding"].lr == 1e-3, "as published"
    assert Schedule.adaround(50_000).groups["rounding"].lr == 1e-3
