import dataclasses
import json

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import nn

from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.tensor_file import write
from quantarena.methods.core.record.trajectory import Trajectory


class Denoiser(nn.Module):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, sample, timestep, context=None, return_dict=True):
        self.inputs.append((sample.clone(), float(torch.as_tensor(timestep).reshape(-1)[0])))
        return (0.1 * sample,)


def run(model, scheduler, batches, steps=4, context=None):
    for sample in batches:
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            output = model(sample, timestep, context=context)[0]
            sample = scheduler.step(output, timestep, sample).prev_sample


def small(calls=5, rows=6):
    sample = (
        torch.arange(calls * rows).float().reshape(calls, rows, 1, 1, 1).expand(-1, -1, 2, 3, 3)
    )
    times = torch.arange(calls).flip(0) * 10
    return Trajectory(sample, times, {"context": sample[..., 0, 0, 0] + 0.5})


def test_record_equals_what_the_network_was_fed():
    model, batches = Denoiser(), [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    with recording(model) as done:
        run(model, DDIMScheduler(), batches)
    recorded = done()
    assert recorded.calls == 4
    assert recorded.rows == 4
    for call in range(4):
        for batch in range(2):
            sample, timestep = model.inputs[4 * batch + call]
            assert torch.equal(recorded.sample[call, 2 * batch : 2 * batch + 2], sample)
            assert recorded.timestep[call] == timestep
    assert recorded.timestep.tolist() == [750, 500, 250, 0]
    assert not model._forward_pre_hooks


def test_last_batch_may_be_smaller():
    model = Denoiser()
    with recording(model) as done:
        run(model, DDIMScheduler(), [torch.randn(3, 1, 2, 2), torch.randn(1, 1, 2, 2)])
    assert done().sample.shape == (4, 4, 1, 2, 2)


def test_repeated_timesteps_are_keyed_by_call():
    model, scheduler = Denoiser(), PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(4)
    visited = scheduler.timesteps.tolist()
    assert len(set(visited)) < len(visited), "this sampler no longer repeats a timestep"
    with recording(model) as done:
        run(model, scheduler, [torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)])
    recorded = done()
    assert recorded.timestep.tolist() == visited
    assert recorded.calls == len(visited)
    for call in range(recorded.calls):
        assert torch.equal(recorded.sample[call, :2], model.inputs[call][0])
        assert torch.equal(recorded.sample[call, 2:], model.inputs[len(visited) + call][0])


def test_conditions_travel_with_their_rows():
    model, context = Denoiser(), torch.randn(2, 5)
    with recording(model) as done:
        run(model, DDIMScheduler(), [torch.randn(2, 1, 2, 2)], context=context)
    recorded = done()
    assert recorded.conditions["context"].shape == (4, 2, 5)
    points = recorded.pick(torch.tensor([0, 3]), torch.tensor([1, 0]))
    assert torch.equal(points.conditions["context"], context[[1, 0]])
    assert points.timestep.tolist() == [recorded.timestep[0], recorded.timestep[3]]
    assert points.step.tolist() == [0, 3]


def test_replaying_recorded_points_gives_the_recorded_next_sample(pixel):
    recorded, scheduler = pixel.trajectory, DDIMScheduler()
    scheduler.set_timesteps(recorded.calls)
    for call in range(recorded.calls - 1):
        rows = torch.arange(recorded.rows)
        points = recorded.pick(torch.full_like(rows, call), rows)
        with torch.no_grad():
            output = points.call(pixel.model)
        expected = scheduler.step(output, scheduler.timesteps[call], points.sample).prev_sample
        assert torch.allclose(recorded.sample[call + 1], expected, atol=1e-5)


def test_nothing_recorded_is_an_error():
    with recording(Denoiser()) as done:
        pass
    with pytest.raises(BrokenModel, match="never called"):
        done()


def test_save_and_load(tmp_path):
    recorded = small()
    recorded.save(tmp_path / "t.safetensors")
    again = Trajectory.load(tmp_path / "t.safetensors")
    assert torch.equal(again.sample, recorded.sample)
    assert torch.equal(again.timestep, recorded.timestep)
    assert torch.equal(again.conditions["context"], recorded.conditions["context"])


@pytest.mark.parametrize("keep", [0, 5, 300])
def test_damaged_file_is_one_line(tmp_path, keep):
    file = tmp_path / "t.safetensors"
    small().save(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BrokenModel, match=r"damaged.*delete it and run again"):
        Trajectory.load(file)


@pytest.mark.parametrize(
    ("samples", "steps", "calls"), [(20, 5, 5), (7, 3, 3), (3, 0, 3), (30, 0, 5), (11, 4, 4)]
)
def test_uniform_stride_counts(samples, steps, calls):
    points = UniformStride(samples, steps).draw(small(), seed=0)
    counts = points.histogram()
    assert len(points) == sum(counts.values()) == samples
    assert len(counts) == calls
    assert max(counts.values()) - min(counts.values()) <= 1
    gaps = torch.tensor(sorted(counts)).diff()
    assert gaps.max() - gaps.min() <= 1
    assert {0, 4} <= set(counts) or calls == 1
    ids = points.sample[:, 0, 0, 0]
    assert len(ids.unique()) == samples, "a point was drawn twice"


def test_uniform_stride_is_exactly_even_where_it_can_be():
    points = UniformStride(16, 4).draw(small(calls=13, rows=9), seed=0)
    assert points.histogram() == {0: 4, 4: 4, 8: 4, 12: 4}


def test_draw_is_a_function_of_the_seed():
    draws = [UniformStride(10, 5).draw(small(), seed) for seed in (3, 3, 4)]
    assert draws[0].sha256() == draws[1].sha256()
    assert draws[0].sha256() != draws[2].sha256()


@pytest.mark.parametrize(("samples", "steps"), [(31, 0), (20, 2)])
def test_more_points_than_recorded_is_an_error(samples, steps):
    with pytest.raises(ValueError, match=f"{samples}.* points asked|points at one step asked"):
        UniformStride(samples, steps).draw(small(), seed=0)


def test_batches_and_rows_keep_order():
    points = UniformStride(10, 5).draw(small(), seed=0)
    pieces = list(points.batches(4))
    assert [len(p) for p in pieces] == [4, 4, 2]
    assert torch.equal(torch.cat([p.sample for p in pieces]), points.sample)
    assert torch.equal(
        torch.cat([p.conditions["context"] for p in pieces]), points.conditions["context"]
    )


def test_hash_sees_samples_times_steps_and_conditions():
    points = small().pick(torch.tensor([0, 1]), torch.tensor([0, 0]))
    context = points.conditions["context"]
    others = [
        dataclasses.replace(points, sample=points.sample + 1),
        dataclasses.replace(points, timestep=points.timestep + 1),
        dataclasses.replace(points, step=points.step + 1),
        dataclasses.replace(points, conditions={"context": context + 1}),
        dataclasses.replace(points, conditions={"context": context.double()}),
        dataclasses.replace(points, conditions={"other": context}),
        dataclasses.replace(points, conditions={"context": {"0": context}}),
        dataclasses.replace(points, conditions={"context": context, "flag": True}),
        dataclasses.replace(points, conditions={"context": context, "flag": False}),
    ]
    assert len({p.sha256() for p in (points, *others)}) == len(others) + 1
    again = small().pick(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert again.sha256() == points.sha256()


def nested():
    """Two images with two halves over three calls: nested, fixed, once and constant."""
    rows = torch.arange(12.0).reshape(3, 4)
    once = torch.arange(4.0).expand(3, 4)
    return Trajectory(
        rows[..., None],
        torch.tensor([9.5, 5, 5]),
        {"a": {"x": rows, "y": [once, None]}, "ids": torch.arange(7), "flag": True, "word": "w"},
        frozenset({"ids"}),
        2,
        CallSchedule("Some", (9.5, 5.0, 5.0)),
        rows[..., None, None],
    )


def test_everything_survives_saving(tmp_path):
    recorded = nested()
    recorded.save(tmp_path / "t")
    again = Trajectory.load(tmp_path / "t")
    for name in ("sample", "timestep", "features"):
        assert torch.equal(getattr(again, name), getattr(recorded, name))
    for name in ("fixed", "halves", "schedule"):
        assert getattr(again, name) == getattr(recorded, name)
    assert torch.equal(again.conditions["a"]["x"], recorded.conditions["a"]["x"])
    assert torch.equal(again.conditions["a"]["y"][0], recorded.conditions["a"]["y"][0])
    assert again.conditions["a"]["y"][0].stride(0) == 0
    assert again.conditions["a"]["y"][1] is None
    assert again.conditions["flag"] is True
    assert again.conditions["word"] == "w"
    assert torch.equal(again.conditions["ids"], torch.arange(7))
    picks = torch.tensor([2, 0]), torch.tensor([3, 1])
    assert again.pick(*picks).sha256() == recorded.pick(*picks).sha256()


def test_points_know_their_image_half_and_schedule():
    points = nested().pick(torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0]))
    assert points.image.tolist() == [1, 1, 0]
    assert points.half.tolist() == [1, 0, 0]
    assert points.schedule.timesteps == (9.5, 5, 5)
    last = list(points.batches(2))[1]
    assert (last.image.tolist(), last.half.tolist(), last.schedule) == ([0], [0], points.schedule)
    assert last.conditions["a"]["x"].tolist() == [4]
    assert last.conditions["ids"].tolist() == list(range(7))


def test_another_format_is_refused(tmp_path):
    write(tmp_path / "t", {}, {"trajectory": json.dumps({"format": 1})})
    with pytest.raises(BrokenModel, match=r"damaged \(format 1, this version reads 2\)"):
        Trajectory.load(tmp_path / "t")
