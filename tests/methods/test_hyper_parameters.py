"""The papers' own lengths, batches and rates, and that schedules of preset ``paper`` are those.

That they reach what trains: ``test_paper_training.py``.
"""

import pytest

from quantarena.bench.plan.presets import PRESETS
from quantarena.methods import hyper_parameters
from quantarena.methods.dilate_quant import DilateQuant
from quantarena.methods.eda_dm import EDADM
from quantarena.methods.info import Effort
from quantarena.methods.mpq_dm import MpqDm
from quantarena.methods.ptqd import Ptqd
from quantarena.methods.q_diffusion import QDiffusion
from quantarena.methods.tfmq_dm import TfmqDm
from quantarena.methods.tuneqdm import TuneQdm

AS_STATED = {
    "Q_DIFFUSION": (20_000, 32, {"rounding": 1e-3}, 0.01),
    "Q_DIFFUSION_ACTS": (5_000, 32, {"act_scale": 4e-4}, 0.0),
    "EDA_DM": (5_000, 32, {"rounding": 0.5, "act_scale": 5e-4}, 0.0),
    "EDA_DM_8_BITS": (5_000, 32, {"rounding": 5e-2, "act_scale": 1e-3}, 0.0),
    "DGQ": (20_000, 8, {"rounding": 1e-3}, 0.01),
    "TFMQ_DM": (20_000, 32, {"rounding": 1e-3}, 0.01),
    "PTQD": (10_000, 8, {"rounding": 1e-3}, 0.01),
    "PTQD_ACTS": (5_000, 16, {"act_scale": 4e-4}, 0.0),
    "EFFICIENT_DM": (16_000, 4, {"lora": 4e-4, "weight_scale": 1e-6, "act_scale": 5e-4}, 0.0),
    "QUEST_TIME": (24_000, 2, {"weight": 1e-5, "act_scale": 1e-5}, 0.0),
    "QUEST_ATTENTION": (6_400, 4, {"weight": 1e-5, "act_scale": 1e-4}, 0.0),
    "MPQ_DM": (16_000, 4, {"lora": 1 / 2500, "weight_scale": 1e-6, "act_scale": 5e-4}, 0.0),
    "DILATE_QUANT": (
        5_000,
        32,
        {"weight": 1e-4, "weight_scale": 1e-4, "act_scale": 1e-4, "act_zero": 1e-4},
        0.0,
    ),
    "TUNE_QDM": (400, 1, {"gain_out": 3e-6, "gain_in": 3e-6}, 0.0),
}
PAPER = PRESETS["paper"].grid.budget
EFFORT = Effort(PAPER.calibration_samples, PAPER.iterations, PAPER.range_samples)


@pytest.mark.parametrize("name", AS_STATED)
def test_the_table_is_what_papers_and_releases_state(name):
    found = getattr(hyper_parameters, name)
    rates = {group: value.lr for group, value in found.groups.items()}
    assert (found.updates, found.batch, rates, found.rounding) == AS_STATED[name]
    assert found.source


def test_the_table_is_complete():
    held = {
        n for n, v in vars(hyper_parameters).items() if isinstance(v, hyper_parameters.Training)
    }
    assert held == set(AS_STATED)


def test_preset_paper_trains_as_published():
    assert EFFORT.as_published
    weights, acts = QDiffusion().schedules(EFFORT.iterations)
    assert weights == hyper_parameters.Q_DIFFUSION.schedule()
    assert acts == hyper_parameters.Q_DIFFUSION_ACTS.schedule()
    for bits, table in ((4, hyper_parameters.EDA_DM), (8, hyper_parameters.EDA_DM_8_BITS)):
        schedule = EDADM().schedule(EFFORT.iterations, "paper", bits)
        assert (schedule.iterations, schedule.batch) == (table.updates, table.batch)
        assert schedule.groups == table.groups
        assert schedule.rounding.strength == table.rounding
    assert DilateQuant().schedule(EFFORT.iterations) == hyper_parameters.DILATE_QUANT.schedule()
    assert TfmqDm().schedule(EFFORT.iterations) == hyper_parameters.TFMQ_DM.schedule()
    first, second = Ptqd().schedules(EFFORT.iterations)
    assert first == hyper_parameters.PTQD.schedule()
    assert second == hyper_parameters.PTQD_ACTS.schedule()
    tuned = MpqDm().schedule(EFFORT, calls=20)
    assert (tuned.updates, tuned.groups) == (16_000, hyper_parameters.MPQ_DM.groups)
    gains = TuneQdm().schedule(EFFORT, 20, 4)
    assert (gains.updates, gains.groups) == (400, hyper_parameters.TUNE_QDM.groups)


def test_a_run_just_below_has_rates_of_its_own():
    below = Effort(128, EFFORT.iterations - 1)
    assert not below.as_published
    assert MpqDm().schedule(below, 20).groups != hyper_parameters.MPQ_DM.groups
