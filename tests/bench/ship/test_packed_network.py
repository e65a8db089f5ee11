"""A packed network is a model of diffusers: counted, moved, copied, pickled, told its call."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

from quantarena.bench.ship.pipeline_folder import load_pipeline, open_exported
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.kernels import native as native_kernels
from quantarena.methods.core.packed.nodes.node import Node


@pytest.fixture
def native(shipped, diffusers):
    return diffusers.DiffusionPipeline.from_pretrained(shipped)


@pytest.fixture
def by_call(stepped, diffusers):
    """A pipeline whose network has a range for each of two sampler calls."""
    return diffusers.DiffusionPipeline.from_pretrained(stepped)


def tensors_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# ---- what diffusers asks ---------------------------------------------------------------------


def test_it_counts_the_parameters_that_it_stands_for(native, pixel_folder, diffusers):
    plain = diffusers.UNet2DModel.from_pretrained(pixel_folder / "unet")
    assert native.unet.num_parameters() == plain.num_parameters()
    without = native.unet.num_parameters(exclude_embeddings=True)
    assert without == plain.num_parameters(exclude_embeddings=True)
    assert native.unet.num_parameters(only_trainable=True) == 0
    assert native.unet.get_memory_footprint() < plain.get_memory_footprint()


def test_it_says_where_and_in_which_format_it_is(native):
    assert native.unet.dtype is torch.float32
    assert native.unet.device == torch.device("cpu")
    assert native.device == torch.device("cpu")
    assert native.to("cpu") is native


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_change_their_format_and_codes_do_not(dtype, native, pixels):
    plain = pixels(native)
    before = {n: tensors_of(m) for n, m in native.unet.named_modules() if isinstance(m, Node)}
    native.to(dtype)
    assert native.unet.dtype is dtype
    assert {p.dtype for p in native.unet.parameters()} == {dtype}
    for name, module in native.unet.named_modules():
        if isinstance(module, Node):
            for leaf, value in before[name].items():
                assert torch.equal(module.state_dict()[leaf], value)
    short = pixels(native)
    assert torch.isfinite(short).all()
    assert 0 < (short - plain).abs().mean() < 0.05
    native.to(torch.float32)
    assert native.unet.dtype is torch.float32


@pytest.mark.parametrize("change", ["half", "bfloat16", "float"])
def test_the_short_names_of_formats(change, native):
    wanted = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}[change]
    assert getattr(native.unet, change)().dtype is wanted


def test_a_short_format_is_asked_for_at_load_and_saved(shipped, diffusers, tmp_path):
    network = diffusers.UNet2DModel.from_pretrained(shipped / "unet", torch_dtype=torch.bfloat16)
    scales = [m.weight_scale.dtype for m in network.modules() if hasattr(m, "panels")]
    assert network.dtype is torch.bfloat16
    assert set(scales) == {torch.float32}
    network.save_pretrained(tmp_path / "short")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "short", torch_dtype=torch.bfloat16)
    x, t = torch.randn(1, 3, 16, 16).bfloat16(), torch.tensor(3)
    with torch.no_grad():
        assert torch.equal(network(x, t).sample, again(x, t).sample)


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (lambda p: p.to(torch.float64), "computes in float32, bfloat16, float16, not in float64"),
        (lambda p: p.unet.double(), "computes in float32, bfloat16, float16, not in float64"),
        (lambda p: p.unet.to("xla"), "on the CPU or on CUDA, not on xla"),
        (lambda p: p.enable_model_cpu_offload(device="cuda"), "cannot be offloaded: its kernels"),
        (
            lambda p: p.enable_sequential_cpu_offload(device="cuda"),
            "cannot be offloaded: its kernels",
        ),
        (lambda p: p.unet.enable_group_offload("cuda"), "cannot be offloaded: its kernels"),
        (lambda p: p.unet.enable_layerwise_casting(), "has no float weights to cast"),
        (lambda p: p.unet.dequantize(), "keeps no float weights: load its base model"),
        (lambda p: p.unet.save_pretrained("x", use_flashpack=True), "leave use_flashpack out"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(act, line, native, pixels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = pixels(native)
    with pytest.raises(UserError, match=line) as caught:
        act(native)
    assert "\n" not in str(caught.value)
    assert (pixels(native) - before).abs().max() < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(native):
    with pytest.raises(UserError, match="there is no CUDA device here"):
        native.unet.to("cuda")


# ---- copies ----------------------------------------------------------------------------------


def through_torch(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "torch": through_torch,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("which", ["native", "by_call"])
def test_a_copied_pipeline_draws_the_same(how, which, request, pixels):
    pipe = request.getfixturevalue(which)
    again = COPIES[how](pipe)
    assert again.unet is not pipe.unet
    assert type(again.unet) is type(pipe.unet)
    assert torch.equal(pixels(again), pixels(pipe))


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_network_computes_the_same_and_is_saved(how, native, same_files, tmp_path):
    again = COPIES[how](native.unet)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor(3)
    with torch.no_grad():
        assert torch.equal(again(x, t).sample, native.unet(x, t).sample)
    again.save_pretrained(tmp_path / "a")
    native.unet.save_pretrained(tmp_path / "b")
    same_files(tmp_path / "a", tmp_path / "b")


ELSEWHERE = """
import sys, torch
torch.set_num_threads(1)
pipe = torch.load(sys.argv[1], weights_only=False)
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(1)
images = pipe(batch_size=2, num_inference_steps=2, generator=generator, output_type="pt").images
torch.save(images, sys.argv[2])
"""


def test_a_pickled_pipeline_draws_in_a_process_that_never_imported_us(by_call, pixels, tmp_path):
    torch.save(by_call, tmp_path / "pipe.pt")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "pipe.pt"), str(tmp_path / "images.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "images.pt"), pixels(by_call))


# ---- the sampler's calls ---------------------------------------------------------------------


def test_a_natively_loaded_network_is_told_its_calls(by_call, stepped, pixels):
    assert by_call.unet.clock.schedule is not None
    assert torch.equal(pixels(by_call), pixels(load_pipeline(stepped)))


def test_calls_that_it_was_not_calibrated_for_are_refused(by_call, pixels):
    with pytest.raises(UserError, match=r"calibrated for 2 calls.*the sampler has 3"):
        pixels(by_call, steps=3)


def test_components_in_another_pipeline_are_told_their_calls(by_call, pixels, diffusers):
    wanted = pixels(by_call)
    assert torch.equal(pixels(diffusers.DDIMPipeline(**by_call.components)), wanted)
    by_call.scheduler = diffusers.DDIMScheduler.from_config(by_call.scheduler.config)
    assert torch.equal(pixels(by_call), wanted)


def test_a_network_alone_finds_its_call_by_an_integer_timestep(by_call, stepped):
    network, clock = by_call.unet, by_call.unet.clock
    x, times = torch.randn(2, 3, 16, 16), [int(t) for t in clock.schedule.timesteps]
    with torch.no_grad():
        for call, time in enumerate(times):
            with clock.at(call):
                wanted = network(x, time).sample
            assert torch.equal(network(x, torch.tensor(time)).sample, wanted)
            assert torch.equal(network(sample=x, timestep=time).sample, wanted)
            assert not clock.is_set
        rows = torch.tensor(times)
        with clock.at(torch.tensor([0, 1])):
            wanted = network(x, rows).sample
        assert torch.equal(network(x, rows).sample, wanted)


@pytest.mark.parametrize("time", [1, 999.0, torch.tensor(0.5)])
def test_a_timestep_that_tells_nothing_is_refused(time, by_call):
    with pytest.raises(UserError, match="nobody said which call this is"):
        by_call.unet(torch.randn(1, 3, 16, 16), time)


def test_timesteps_that_come_twice_tell_nothing(by_call):
    schedule = by_call.unet.clock.schedule
    by_call.unet.clock.schedule = type(schedule)("PNDM", (*schedule.timesteps[:1] * 2,))
    with pytest.raises(UserError, match="nobody said which call this is"):
        by_call.unet(torch.randn(1, 3, 16, 16), int(schedule.timesteps[0]))


def test_pipelines_without_tables_keep_their_scheduler_as_it_is(shipped):
    pipe = open_exported(shipped).loaded.pipe
    assert "step" not in vars(pipe.scheduler)


# ---- recorded steps --------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["native", "by_call"])
def test_a_recorded_step_draws_the_same(made, request, pixels):
    pipe = request.getfixturevalue(made)
    if native_kernels.library().run is None:
        pytest.skip("steps are recorded of native kernels")
    for _ in range(5):  # by then norms and activations are computed as they will be
        plain = pixels(pipe)
    recorded = vars(pipe.unet.record_step(exact=True))["_recorded_step"]
    drawn = [pixels(pipe) for _ in range(3)]
    assert recorded.told.replayed > 0, recorded.told
    assert all(torch.equal(image, plain) for image in drawn)
    fast = vars(pipe.unet.record_step())["_recorded_step"]
    assert (pixels(pipe) - plain).abs().mean() < 0.01
    assert fast.told.replayed > 0
    pipe.unet.record_step(on=False)
    assert torch.equal(pixels(pipe), plain)


def test_copies_and_files_of_a_recorded_network_hold_no_recording(native, pixels, tmp_path):
    native.save_pretrained(tmp_path / "before")
    native.unet.record_step()
    pixels(native)
    copied = copy.deepcopy(native.unet)
    again = pickle.loads(pickle.dumps(native.unet))
    for other in (copied, again):
        assert "_recorded_step" not in vars(other)
    native.save_pretrained(tmp_path / "after")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        before, after = (tmp_path / when / "unet" / name for when in ("before", "after"))
        assert before.read_bytes() == after.read_bytes()


def test_a_recorded_network_refuses_and_trains_as_before(native):
    network = native.unet.record_step()
    x, times = torch.randn(2, 3, 8, 8), torch.tensor([1, 1])
    with torch.no_grad():
        first = network(x, times).sample
    network.train()
    with torch.no_grad():
        assert torch.allclose(network(x, times).sample, first, atol=1e-4)
    network.eval()
    with pytest.raises(UserError, match="offload"):
        network.enable_group_offload()
