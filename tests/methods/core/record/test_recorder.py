import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import BrokenModel, UserError
from quantarena.methods.core.record.recorder import recording

STEPS = 5


SAMPLERS = {
    "DDIM": ("DDIMScheduler", {}, STEPS),
    "DDPM": ("DDPMScheduler", {}, STEPS),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, STEPS + 1),
    "PNDM": ("PNDMScheduler", {}, 3 * 4 + STEPS - 3),
    "Heun": ("HeunDiscreteScheduler", {}, 2 * STEPS - 1),
    "Euler": ("EulerDiscreteScheduler", {}, STEPS),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"solver_order": 2}, STEPS),
    "UniPC": ("UniPCMultistepScheduler", {}, STEPS),
    "LCM": ("LCMScheduler", {}, STEPS),
}


REPEATING = {"PLMS", "PNDM", "Heun"}


@pytest.fixture(params=SAMPLERS)
def sampler(request, diffusers):
    kind, config, calls = SAMPLERS[request.param]
    return request.param, getattr(diffusers, kind)(**config), calls


@torch.no_grad()
def test_record_is_what_the_network_saw_call_by_call(stub, sample_once, noise, sampler):
    name, scheduler, calls = sampler
    model = stub()
    with recording(model, scheduler) as done:
        for seed, count in ((0, 2), (1, 2), (2, 1)):
            sample_once(model, scheduler, noise(count, seed))
    recorded = done()
    assert recorded.calls == calls
    assert recorded.rows == recorded.images == 5
    assert recorded.timestep.tolist() == scheduler.timesteps.tolist()
    assert (len(set(recorded.timestep.tolist())) < calls) == (name in REPEATING)
    assert len(model.seen) == 3 * calls
    for call in range(calls):
        batches = [model.seen[run * calls + call] for run in range(3)]
        assert torch.equal(recorded.sample[call], torch.cat([x for x, _ in batches]))
        assert {t for _, t in batches} == {float(recorded.timestep[call])}
    assert recorded.schedule.sampler == type(scheduler).__name__
    assert list(recorded.schedule.timesteps) == scheduler.timesteps.tolist()
    assert not model._forward_pre_hooks
    assert not {"step", "set_timesteps"} & set(vars(scheduler))


@torch.no_grad()
def test_calls_are_told_apart_by_timesteps_where_nobody_announces(
    stub, sample_once, noise, sampler
):
    _, scheduler, calls = sampler
    model = stub()
    with recording(model) as blind, recording(model, scheduler) as told:
        for seed in (0, 1):
            sample_once(model, scheduler, noise(2, seed))
    assert blind().calls == calls
    assert torch.equal(blind().sample, told().sample)
    assert blind().schedule is None


@torch.no_grad()
def test_network_calls_of_one_step_are_rows_of_one_call(diffusers, stub, sample_once, noise):
    whole, split = stub(), stub()
    split.load_state_dict(whole.state_dict())
    records = []
    for model, parts in ((whole, 1), (split, 2)):
        scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
        with recording(model, scheduler) as done:
            sample_once(model, scheduler, noise(4), split=parts)
        records.append(done())
    assert records[1].calls == STEPS + 1
    assert torch.allclose(records[0].sample, records[1].sample, atol=1e-6)


@torch.no_grad()
def test_guidance_halves_know_their_image(diffusers, stub, sample_once, noise):
    model, scheduler = stub(), diffusers.DDIMScheduler()
    with recording(model, scheduler) as done:
        for seed, count in ((0, 2), (1, 1)):
            tokens = torch.tensor([[-1.0]] * count + [[float(10 * seed + i)] for i in range(count)])
            sample_once(model, scheduler, noise(count, seed), halves=2, context=tokens)
    assert done.rows == 6
    recorded = done(halves=2)
    assert (recorded.rows, recorded.images, recorded.halves) == (6, 3, 2)
    assert recorded.conditions["context"][0, :, 0].tolist() == [-1, -1, -1, 0, 1, 10]
    points = recorded.pick(torch.tensor([1, 1, 3]), torch.tensor([2, 5, 3]))
    assert points.image.tolist() == [2, 2, 0]
    assert points.half.tolist() == [0, 1, 1]
    assert torch.equal(points.sample[0], points.sample[1])
    assert points.conditions["context"].tolist() == [[-1], [10], [0]]
    with pytest.raises(BrokenModel, match="4 guidance halves"):
        done(halves=4)


class Hidden(nn.Module):
    def forward(self, hidden_states, encoder_hidden_states=None, timestep=None, return_dict=True):
        return (hidden_states * timestep.reshape(-1, 1),)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x, t: m(x, None, t),
        lambda m, x, t: m(x, timestep=t, return_dict=False),
        lambda m, x, t: m(hidden_states=x, timestep=t.expand(len(x))),
    ],
    ids=["positional", "keyword", "one-a-row"],
)
def test_inputs_are_named_by_the_networks_signature(call):
    model = Hidden()
    x = torch.randn(3, 2)
    with recording(model) as done:
        for t in (7.0, 3.0):
            call(model, x, torch.tensor(t))
    recorded = done()
    assert recorded.timestep.tolist() == [7, 3]
    points = recorded.pick(torch.tensor([1, 0]), torch.tensor([2, 0]))
    assert torch.equal(points.call(model), torch.stack([3 * x[2], 7 * x[0]])[0:2])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m(torch.zeros(2, 2), timestep=torch.tensor([1, 2])), "different timesteps"),
        (lambda m: m(torch.zeros(2, 2)), "'timestep'"),
        (lambda m: m(3.0, timestep=torch.tensor(1)), "'hidden_states'"),
    ],
)
def test_calls_that_no_trajectory_has_are_refused(call, match):
    model = Hidden()
    with recording(model), pytest.raises(BrokenModel, match=match):
        call(model)


def test_a_network_called_outside_of_the_steps_is_refused(diffusers, stub, noise):
    model, scheduler = stub(), diffusers.DDIMScheduler()
    scheduler.set_timesteps(3)
    with recording(model, scheduler), pytest.raises(BrokenModel, match="inside the recording"):
        model(noise(1), scheduler.timesteps[0])


@torch.no_grad()
def test_a_run_that_stops_early_is_refused(diffusers, stub, sample_once, noise):
    model, scheduler = stub(), diffusers.DDIMScheduler()
    with recording(model, scheduler) as done:
        sample_once(model, scheduler, noise(2))
        scheduler.set_timesteps(STEPS)
        model(noise(2), scheduler.timesteps[0])
    with pytest.raises(BrokenModel, match=r"call 1 .* call 0 of \[2, 2\].*finish"):
        done()


@torch.no_grad()
def test_runs_of_other_lengths_are_refused(diffusers, stub, sample_once, noise):
    model, scheduler = stub(), diffusers.DDIMScheduler()
    with recording(model, scheduler):
        sample_once(model, scheduler, noise(2))
        with pytest.raises(UserError, match=f"for {STEPS} calls of DDIMScheduler.* has 7 calls"):
            sample_once(model, scheduler, noise(2), steps=7)
