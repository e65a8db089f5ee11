import copy
import inspect
import json

import pytest
import torch
from torch import nn

from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.record.announce import (
    announcing,
    attach,
    counting,
    require_same,
    schedule_of,
)


class Banked(nn.Module):
    """A network with one setting for each sampler call, which it returns."""

    def __init__(self, entries, clock):
        super().__init__()
        self.bank, self.clock, self.used = list(range(entries)), clock, []

    def forward(self, sample, timestep):
        self.used.append(self.bank[self.clock.index])
        return 0.1 * sample


def calibrated(scheduler, steps):
    """A clock of a model calibrated on this scheduler's calls."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return CallClock(schedule_of(scheduler))


def run(model, scheduler, steps=5, split=1, halves=1):
    scheduler.set_timesteps(steps)
    x = torch.ones(2, 1, 4, 4)
    for timestep in scheduler.timesteps:
        parts = scheduler.scale_model_input(x, timestep).chunk(split)
        outputs = [model(torch.cat([part] * halves), timestep)[: len(part)] for part in parts]
        x = scheduler.step(torch.cat(outputs), timestep, x, return_dict=False)[0]


@pytest.mark.parametrize(
    ("kind", "config", "calls"),
    [
        ("DDIMScheduler", {}, 5),
        ("DDPMScheduler", {}, 5),
        ("PNDMScheduler", {"skip_prk_steps": True}, 6),
        ("HeunDiscreteScheduler", {}, 9),
        ("EulerDiscreteScheduler", {}, 5),
        ("DPMSolverMultistepScheduler", {}, 5),
        ("UniPCMultistepScheduler", {}, 5),
        ("LCMScheduler", {}, 5),
    ],
)
def test_every_call_uses_its_own_entry_in_every_run(diffusers, kind, config, calls):
    scheduler = getattr(diffusers, kind)(**config)
    clock = calibrated(scheduler, 5)
    model = Banked(calls, clock)
    with announcing(scheduler, clock):
        for _ in range(2):  # a pipeline that is called again
            run(model, scheduler)
            assert not clock.is_set
    assert model.used == 2 * list(range(calls))


def test_guidance_and_split_batches_are_one_step(diffusers):
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    clock = calibrated(scheduler, 5)
    model = Banked(6, clock)
    with announcing(scheduler, clock):
        run(model, scheduler, split=2, halves=2)
    assert model.used == [k for k in range(6) for _ in range(2)]


def test_a_run_that_was_cut_off_starts_again_at_0(diffusers):
    scheduler = diffusers.DDIMScheduler()
    clock = calibrated(scheduler, 5)
    model = Banked(5, clock)
    with announcing(scheduler, clock):
        scheduler.set_timesteps(5)
        for timestep in scheduler.timesteps[:3]:
            scheduler.step(model(torch.ones(1), timestep), timestep, torch.ones(1))
        run(model, scheduler)
    assert model.used == [0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "config", "steps", "match"),
    [
        ("DDIMScheduler", {}, 50, "for 20 calls of DDIMScheduler .* has 50 calls of DDIM"),
        ("PNDMScheduler", {"skip_prk_steps": True}, 20, "has 21 calls of PNDMScheduler"),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 20, r"call 0 is at 999, not 950"),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, 20, r"call 0 is at 999, not 950"),
        ("DDIMScheduler", {"steps_offset": 1}, 20, r"call 0 is at 951, not 950"),
    ],
)
def test_another_schedule_is_refused_before_the_first_call(diffusers, kind, config, steps, match):
    other = getattr(diffusers, kind)(**config)
    clock = calibrated(diffusers.DDIMScheduler(), 20)
    model = Banked(20, clock)
    with announcing(other, clock), pytest.raises(UserError, match=match) as caught:
        run(model, other, steps)
    assert "\n" not in caught.value.message
    assert not model.used


def test_another_sampler_at_the_same_timesteps_may_sample(diffusers):
    first, other = diffusers.DDIMScheduler(), diffusers.DDPMScheduler()
    clock = calibrated(first, 5)
    model = Banked(5, clock)
    with announcing(other, clock):
        run(model, other)
    assert model.used == list(range(5))


@pytest.mark.parametrize("times", [(9.0, 5.0), (9.0, 5.0, 1.0, 0.0), ()])
def test_more_or_fewer_calls_are_another_schedule(times):
    with pytest.raises(UserError, match=f"for 3 calls of A .* has {len(times)} calls of B"):
        require_same(CallSchedule("A", (9.0, 5.0, 1.0)), CallSchedule("B", times))


def test_timesteps_survive_a_round_trip_through_json(diffusers):
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(7)
    found = schedule_of(scheduler)
    assert any(t != round(t) for t in found.timesteps)
    again = CallSchedule("Euler", tuple(json.loads(json.dumps(found.timesteps))))
    require_same(again, found)


def test_image_to_image_starts_where_it_says(diffusers):
    scheduler = diffusers.EulerDiscreteScheduler()
    clock = calibrated(scheduler, 5)
    model = Banked(5, clock)
    with announcing(scheduler, clock):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(2)
        x = torch.ones(1, 1, 2, 2)
        for timestep in scheduler.timesteps[2:]:
            x = scheduler.step(model(x, timestep), timestep, x).prev_sample
    assert model.used == [2, 3, 4]


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("skipped", [1, 2, 3])
def test_calls_of_image_to_image_are_found_and_their_tables_fit(diffusers, kind, skipped):
    """Samplers without ``set_begin_index`` too, and where a timestep comes twice (PNDM)."""
    config = {"skip_prk_steps": True} if kind == "PNDMScheduler" else {}
    scheduler, clock = getattr(diffusers, kind)(**config), CallClock()

    def sample(used, begin=skipped):
        scheduler.set_timesteps(5)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = torch.ones(1, 1, 2, 2)
        for timestep in scheduler.timesteps[begin:]:
            used.append(clock.index)
            x = scheduler.step(0.1 * x, timestep, x).prev_sample

    with counting(scheduler, clock) as ran:
        made = [[], []]
        for used in made:
            sample(used)
        calls = len(scheduler.timesteps) - skipped
        assert made == 2 * [list(range(calls))]
        wanted = tuple(map(float, scheduler.timesteps[skipped:]))
        assert ran().timesteps == clock.schedule.timesteps == wanted
        with pytest.raises(UserError, match=r"has [67] calls"):
            scheduler.set_timesteps(6)
    with announcing(scheduler, clock):
        sample(again := [])
        assert again == list(range(calls))
        with pytest.raises(UserError, match=r"calls earlier|is due \(call"):
            sample([], skipped - 1)


def test_skipped_calls_that_nobody_announced_are_refused(diffusers):
    scheduler = diffusers.DDIMScheduler()
    clock = calibrated(scheduler, 5)
    x = torch.ones(1, 1, 2, 2)
    with announcing(scheduler, clock):
        scheduler.set_timesteps(5)
        with pytest.raises(UserError, match=r"at timestep 400 where 800 is due \(call 0 of 5\)"):
            scheduler.step(x, scheduler.timesteps[2], x)
        run(Banked(5, clock), scheduler)
        with pytest.raises(UserError, match="where nothing is left"):
            scheduler.step(x, scheduler.timesteps[4], x)


def test_where_nothing_depends_on_the_call_a_lost_sampler_goes_on_and_says_nothing(diffusers):
    scheduler, clock = diffusers.DDIMScheduler(), CallClock()
    x = torch.ones(1, 1, 2, 2)
    with announcing(scheduler, clock):
        scheduler.set_timesteps(5)
        assert clock.index == 0
        scheduler.step(x, scheduler.timesteps[2], x)
        assert clock.index == 1, "the first call that is made may be any"
        for k in (1, 2):
            scheduler.step(x, scheduler.timesteps[k], x)
            assert not clock.is_set
        scheduler.set_timesteps(5)
        assert clock.index == 0


class Odd:
    """A sampler of another kind."""

    timesteps = torch.tensor([3, 1])

    def set_timesteps(self, steps):
        pass

    def step_correct(self, output, timestep, sample):
        return sample


def test_what_is_no_such_scheduler_announces_nothing():
    scheduler, clock = Odd(), CallClock()
    with announcing(scheduler, clock):
        scheduler.set_timesteps(2)
        assert not clock.is_set
    assert not vars(scheduler)


def test_a_network_call_that_no_step_belongs_to_is_an_error(diffusers):
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(5)
    clock = calibrated(scheduler, 5)
    model, x = Banked(5, clock), torch.ones(1)
    clock.set(3)
    with announcing(scheduler, clock):
        with pytest.raises(UserError, match="nobody said which call"):
            model(x, 0)
        with pytest.raises(UserError, match="steps before set_timesteps"):
            scheduler.step(x, scheduler.timesteps[0], x)
        run(model, scheduler)
        with pytest.raises(UserError, match="nobody said which call"):
            model(x, 0)
    with pytest.raises(UserError, match="nobody said which call"):
        model(x, 0)


def test_results_and_signatures_stay_and_detaching_leaves_no_trace(diffusers):
    scheduler, plain = diffusers.DDIMScheduler(), diffusers.DDIMScheduler()
    before = set(vars(scheduler))
    detach = attach(scheduler, CallClock())
    for name in ("step", "set_timesteps"):
        assert inspect.signature(getattr(scheduler, name)) == inspect.signature(
            getattr(plain, name)
        )
    for each in (scheduler, plain):
        each.set_timesteps(4)
    assert torch.equal(scheduler.timesteps, plain.timesteps)
    x = torch.randn(1, 1, 2, 2)
    assert torch.equal(
        scheduler.step(x, timestep=750, sample=x).prev_sample, plain.step(x, 750, x).prev_sample
    )
    detach()
    assert {"step", "set_timesteps"} & set(vars(scheduler)) == set()
    assert set(vars(scheduler)) - before <= set(vars(plain))


def test_two_clocks_on_one_scheduler(diffusers):
    scheduler = diffusers.DDIMScheduler()
    outer, inner = CallClock(), CallClock()
    with announcing(scheduler, outer):
        with announcing(scheduler, inner):
            scheduler.set_timesteps(3)
            assert outer.index == inner.index == 0
            x = torch.ones(1)
            scheduler.step(x, scheduler.timesteps[0], x)
            assert outer.index == inner.index == 1
        scheduler.step(x, scheduler.timesteps[1], x)
        assert outer.index == 2
        assert not inner.is_set
    assert "step" not in vars(scheduler)


def test_a_copy_announces_nothing_and_steps_for_itself(diffusers):
    scheduler, clock = diffusers.EulerDiscreteScheduler(), CallClock()
    x = torch.ones(1, 1, 2, 2)
    with announcing(scheduler, clock):
        scheduler.set_timesteps(4)
        other = copy.deepcopy(scheduler)
        other.step(x, other.timesteps[0], x)
        assert clock.index == 0
        assert (other.step_index, scheduler.step_index) == (1, None)


def test_no_clock_is_no_announcement(diffusers):
    scheduler = diffusers.DDIMScheduler()
    with announcing(scheduler, None):
        assert "step" not in vars(scheduler)


def test_errors_inside_the_block_detach_too(diffusers):
    scheduler = diffusers.DDIMScheduler()
    with pytest.raises(RuntimeError), announcing(scheduler, CallClock()):
        raise RuntimeError
    assert "step" not in vars(scheduler)
