import diffusers
import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import BrokenModel, UserError
from quantarena.methods.core.record.features import FeatureTap, features, middle_module
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import Trajectory

STEPS = 5
SAMPLERS = {
    "DDIM": (diffusers.DDIMScheduler, {}, STEPS),
    "DDPM": (diffusers.DDPMScheduler, {}, STEPS),
    "PLMS": (diffusers.PNDMScheduler, {"skip_prk_steps": True}, STEPS + 1),
    "PNDM": (diffusers.PNDMScheduler, {}, 3 * 4 + STEPS - 3),
    "Heun": (diffusers.HeunDiscreteScheduler, {}, 2 * STEPS - 1),
    "Euler": (diffusers.EulerDiscreteScheduler, {}, STEPS),
    "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}, STEPS),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}, STEPS),
    "LCM": (diffusers.LCMScheduler, {}, STEPS),
}
REPEATING = {"PLMS", "PNDM", "Heun"}


class Stub(nn.Module):
    """A network that remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 3, 1)
        self.seen = []

    def forward(self, sample, timestep, context=None, added=None, flag=None, return_dict=True):
        self.seen.append((sample.clone(), float(torch.as_tensor(timestep).reshape(-1)[0])))
        return (0.3 * sample + 0.01 * torch.tanh(self.inner(sample)).mean(1, keepdim=True),)


def sample_once(model, scheduler, x, steps=STEPS, split=1, halves=1, **inputs):
    """A pipeline's loop."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        parts = [
            model(torch.cat([part] * halves), timestep, **inputs)[0] for part in scaled.chunk(split)
        ]
        output = torch.cat([part.chunk(halves)[-1] for part in parts])
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return x


def noise(count, seed=0, channels=1, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    kind, config, calls = SAMPLERS[request.param]
    return request.param, kind(**config), calls


# any sampler


@torch.no_grad()
def test_record_is_what_the_network_saw_call_by_call(sampler):
    name, scheduler, calls = sampler
    model = Stub()
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
def test_calls_are_told_apart_by_timesteps_where_nobody_announces(sampler):
    _, scheduler, calls = sampler
    model = Stub()
    with recording(model) as blind, recording(model, scheduler) as told:
        for seed in (0, 1):
            sample_once(model, scheduler, noise(2, seed))
    assert blind().calls == calls
    assert torch.equal(blind().sample, told().sample)
    assert blind().schedule is None


@torch.no_grad()
def test_network_calls_of_one_step_are_rows_of_one_call():
    whole, split = Stub(), Stub()
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
def test_guidance_halves_know_their_image():
    model, scheduler = Stub(), diffusers.DDIMScheduler()
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


# conditions


@torch.no_grad()
def test_nested_conditions_and_constants_are_given_again(tmp_path):
    model, scheduler = Stub(), diffusers.DDIMScheduler()
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
def test_a_network_with_nested_conditions_gives_what_it_gave(tmp_path):
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
def test_what_is_equal_at_every_call_is_stored_once(tmp_path):
    sizes = []
    for changing in (False, True):
        model, scheduler = Stub(), diffusers.DDIMScheduler()
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
def test_a_condition_that_changes_late_is_kept_call_by_call():
    model = Stub()
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
def test_what_cannot_be_given_again_says_so(inputs, match):
    model, scheduler = Stub(), diffusers.DDIMScheduler()

    def run():
        with recording(model, scheduler) as done:
            scheduler.set_timesteps(2)
            for k, timestep in enumerate(scheduler.timesteps):
                model(noise(2), timestep, **inputs(k))
                scheduler.step(noise(2), timestep, noise(2))
        done()

    with pytest.raises(BrokenModel, match=match):
        run()


# ways to call a network


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


def test_a_network_called_outside_of_the_steps_is_refused():
    model, scheduler = Stub(), diffusers.DDIMScheduler()
    scheduler.set_timesteps(3)
    with recording(model, scheduler), pytest.raises(BrokenModel, match="inside the recording"):
        model(noise(1), scheduler.timesteps[0])


@torch.no_grad()
def test_a_run_that_stops_early_is_refused():
    model, scheduler = Stub(), diffusers.DDIMScheduler()
    with recording(model, scheduler) as done:
        sample_once(model, scheduler, noise(2))
        scheduler.set_timesteps(STEPS)
        model(noise(2), scheduler.timesteps[0])
    with pytest.raises(BrokenModel, match=r"call 1 .* call 0 of \[2, 2\].*finish"):
        done()


@torch.no_grad()
def test_runs_of_other_lengths_are_refused():
    model, scheduler = Stub(), diffusers.DDIMScheduler()
    with recording(model, scheduler):
        sample_once(model, scheduler, noise(2))
        with pytest.raises(UserError, match=f"for {STEPS} calls of DDIMScheduler.* has 7 calls"):
            sample_once(model, scheduler, noise(2), steps=7)


# features


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.mid = nn.Linear(4, 6)

    def forward(self, sample, timestep, return_dict=True):
        x = torch.tanh(self.first(sample)) + 0.001 * torch.as_tensor(timestep).reshape(-1, 1, 1, 1)
        x = self.mid(input=x.flatten(2).transpose(1, 2))
        return (sample * 0.1 + x.mean((1, 2)).reshape(-1, 1, 1, 1),)


@torch.no_grad()
@pytest.mark.parametrize(
    ("tap", "shape"),
    [
        (FeatureTap("mid", rows=3), (3, 4, 16)),
        (FeatureTap("mid", rows=9, output=True), (4, 6, 16)),
        (FeatureTap("mid", rows=2, channel=1), (2, 16, 4)),
        (FeatureTap("first", rows=3, output=True), (3, 4, 4, 4)),
    ],
)
def test_features_of_the_first_rows_at_every_call(tap, shape, tmp_path):
    torch.manual_seed(0)
    model, scheduler = Deep(), diffusers.HeunDiscreteScheduler()
    with recording(model, scheduler, tap=tap) as done:
        for seed in (0, 1):
            sample_once(model, scheduler, noise(2, seed))
    recorded = done()
    assert recorded.features.shape == (recorded.calls, *shape)
    assert torch.allclose(features(model, recorded, tap), recorded.features, atol=1e-6)
    if tap.module == "first":
        expected = model.first(recorded.sample[3, : tap.rows])
        assert torch.allclose(recorded.features[3], expected, atol=1e-6)
    recorded.save(tmp_path / "t.safetensors")
    assert torch.equal(Trajectory.load(tmp_path / "t.safetensors").features, recorded.features)
    assert not model.mid._forward_hooks
    assert not model.mid._forward_pre_hooks


def test_features_that_cannot_be_had_say_so():
    model, scheduler = Deep(), diffusers.DDIMScheduler()
    with (
        pytest.raises(UserError, match=r"no module 'mib'.*did you mean mid"),
        recording(model, scheduler, tap=FeatureTap("mib")),
    ):
        pass
    with (
        pytest.raises(ValueError, match="need the scheduler"),
        recording(model, tap=FeatureTap("mid")),
    ):
        pass
    model.unused = nn.Linear(1, 1)
    with recording(model, scheduler, tap=FeatureTap("unused")) as done:
        sample_once(model, scheduler, noise(2))
    with pytest.raises(BrokenModel, match="unused did not run"):
        done()
    with pytest.raises(BrokenModel, match="unused did not run"):
        features(model, small_record(), FeatureTap("unused"))


def small_record():
    return Trajectory(noise(2).expand(2, -1, -1, -1, -1), torch.tensor([5, 1]), {})


def test_the_middle_is_the_attention_of_the_lowest_resolution(pixel, conditional, transformer):
    assert middle_module(pixel.graph).startswith("mid_block.attentions.0")
    assert middle_module(conditional.graph) == ("mid_block.attentions.0.transformer_blocks.0.attn1")
    assert middle_module(transformer.graph) == "transformer_blocks.0.attn1"
