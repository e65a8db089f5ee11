"""Conditions of a recorded network: nested, constant, changing."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import Trajectory

STEPS = 5


@torch.no_grad()
def test_nested_conditions_and_constants_are_given_again(
    diffusers, stub, sample_once, noise, tmp_path
):
    model, scheduler = stub(), diffusers.DDIMScheduler()
    vectors, mask = torch.randn(4, 6), torch.ones(3, dtype=torch.bool)
    added = {"vectors": vectors, "pair": (torch.arange(4), None), "mask": mask, "gain": 0.5}
    with recording(model, scheduler) as done:
        for rows in (slice(0, 2), slice(2, 4)):
            inputs = added | {"vectors": vectors[rows], "pair": (torch.arange(4)[rows], None)}
            sample_once(model, scheduler, noise(2), added=inputs, flag=True)
    done.save(tmp_path / "t.safetensors")
    for recorded in (done(), Trajectory.load(tmp_path / "t.safetensors")):
        assert recorded.fixed == {"added.mask"}
        points = recorded.pick(torch.tensor([4, 0, 2]), torch.tensor([3, 0, 1]))
        calls = []

        class Echo(nn.Module):
            def forward(self, sample, timestep, return_dict, *, into=calls, **conditions):
                into.append(conditions)
                return (sample,)

        for part in points.batches(2):
            part.call(Echo())
        assert len(calls) == 2
        assert set(calls[0]) == {"added", "flag"}
        assert calls[0]["flag"] is True
        first, last = (call["added"] for call in calls)
        assert torch.equal(first["vectors"], vectors[[3, 0]])
        assert torch.equal(last["vectors"], vectors[[1]])
        assert isinstance(first["pair"], tuple)
        assert first["pair"][0].tolist() == [3, 0]
        assert first["pair"][1] is None
        assert torch.equal(last["mask"], mask)
        assert last["gain"] == 0.5


@torch.no_grad()
def test_a_network_with_nested_conditions_gives_what_it_gave(diffusers, noise, tmp_path):
    """A tiny U-Net that takes pooled text and sizes in a dict, as SDXL's does; two guided runs."""
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        in_channels=1,
        out_channels=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 2 * 4,
    ).eval()
    scheduler, gave = diffusers.EulerDiscreteScheduler(), []
    keep = model.register_forward_hook(lambda module, args, output: gave.append(output[0]))
    with recording(model, scheduler) as done:
        for seed in (0, 1):
            scheduler.set_timesteps(3)
            added = {"text_embeds": torch.randn(4, 6), "time_ids": torch.rand(4, 2)}
            text, x = torch.randn(4, 5, 8), noise(2, seed, size=8) * scheduler.init_noise_sigma
            for timestep in scheduler.timesteps:
                both = torch.cat([scheduler.scale_model_input(x, timestep)] * 2)
                first, second = model(
                    both,
                    timestep,
                    encoder_hidden_states=text,
                    cross_attention_kwargs=None,
                    added_cond_kwargs=added,
                    return_dict=False,
                )[0].chunk(2)
                x = scheduler.step(first + 3 * (second - first), timestep, x).prev_sample
    keep.remove()
    done.save(tmp_path / "t", halves=2)
    recorded = Trajectory.load(tmp_path / "t")
    call, image, half = torch.tensor([2, 0, 1, 2]), torch.tensor([3, 0, 1, 2]), [1, 0, 1, 0]
    points = recorded.pick(call, image + 4 * torch.tensor(half))
    expected = [
        gave[3 * (i // 2) + k][2 * h + i % 2] for k, i, h in zip(call, image, half, strict=True)
    ]
    assert torch.allclose(points.call(model), torch.stack(expected), atol=1e-6)
    assert points.conditions["cross_attention_kwargs"] is None


@torch.no_grad()
def test_what_is_equal_at_every_call_is_stored_once(diffusers, stub, noise, tmp_path):
    sizes = []
    for changing in (False, True):
        model, scheduler = stub(), diffusers.DDIMScheduler()
        context = torch.randn(2, 1000)
        with recording(model, scheduler) as done:
            scheduler.set_timesteps(STEPS)
            for timestep in scheduler.timesteps:
                model(noise(2), timestep, context=context.clone())
                scheduler.step(noise(2), timestep, noise(2))
                if changing:
                    context[0, 0] += 1
        done.save(tmp_path / "t.safetensors")
        sizes.append((tmp_path / "t.safetensors").stat().st_size)
        recorded = done()
        assert recorded.conditions["context"].shape == (STEPS, 2, 1000)
        assert (recorded.conditions["context"].stride(0) == 0) != changing
        assert torch.equal(recorded.conditions["context"][-1] + changing, context + changing) != (
            changing
        )
        again = tmp_path / "again.safetensors"
        Trajectory.load(tmp_path / "t.safetensors").save(again)
        assert again.read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    assert sizes[1] - sizes[0] > 0.99 * (STEPS - 1) * 8000


@torch.no_grad()
def test_a_condition_that_changes_late_is_kept_call_by_call(stub, noise):
    model = stub()
    with recording(model) as done:
        for timestep in (9, 5, 1):
            model(noise(2), timestep, context=torch.full((2, 1), float(timestep == 1)))
    assert done().conditions["context"][:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (lambda k: {"flag": k}, "flag changes from call to call"),
        (lambda k: {"context": torch.full((3,), float(k))}, "context changes from call to call"),
        (lambda k: {"context": torch.zeros(2, 3 + k)}, r"rows of shape .3,. and .4,."),
        (lambda k: {"context": None if k else torch.zeros(2, 3)}, "changes from call to call"),
        (lambda k: {"added": {"a": 0} if k else {}}, "other inputs at sampler call 1"),
        (lambda k: {"flag": torch.float32}, "flag is a dtype: only tensors"),
    ],
)
def test_what_cannot_be_given_again_says_so(diffusers, stub, noise, inputs, match):
    model, scheduler = stub(), diffusers.DDIMScheduler()

    def run():
        with recording(model, scheduler) as done:
            scheduler.set_timesteps(2)
            for k, timestep in enumerate(scheduler.timesteps):
                model(noise(2), timestep, **inputs(k))
                scheduler.step(noise(2), timestep, noise(2))
        done()

    with pytest.raises(BrokenModel, match=match):
        run()
