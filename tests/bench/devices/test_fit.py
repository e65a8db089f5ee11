"""Networks that do not fit a device are refused with the bytes, and with what to do about it."""

import pytest
import torch
from torch import nn

from quantarena.bench.devices import device, fit
from quantarena.bench.errors import UserError
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.methods.core.visits import visited_device
from quantarena.methods.testing.pretend import Pretended, pretended_cuda


class Block(nn.Module):
    """A block of 4,000 bytes."""

    def __init__(self, wide=10):
        super().__init__()
        self.layer = nn.Linear(100, wide, bias=False)


class Stack(nn.Module):
    """Blocks, and a layer around them."""

    def __init__(self, *wide):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for width in wide)
        self.last = nn.Linear(2, 2, bias=False)


NETWORKS = {"unet": Stack(10, 20, 10), "vae": nn.Linear(10, 10, bias=False)}
BYTES = 4000 + 8000 + 4000 + 16 + 400
CUDA, OFFLOAD = Target("cuda"), Target("cuda", offload=True)


class Pipe:
    """A pipeline of these networks, and of what is none."""

    def __init__(self):
        self.components = {"unet": Stack(10, 20, 10), "vae": nn.Linear(10, 10), "scheduler": 1}
        self.unet = self.components["unet"]


@pytest.fixture
def loaded(monkeypatch):
    """A pipeline on the host of a machine whose card has 10,000 bytes."""
    monkeypatch.setattr(device, "require", lambda target: torch.device(target.device))
    monkeypatch.setattr(fit, "free_bytes", lambda place: 10_000)
    return LoadedPipeline(Pipe(), "unet", "")


@pytest.mark.parametrize("free", [BYTES, 10**9, None])
def test_what_fits_or_cannot_be_known_passes(free):
    fit.require_fit(NETWORKS, CUDA, free)


def test_without_the_option_all_networks_have_to_fit():
    with pytest.raises(UserError) as raised:
        fit.require_fit(NETWORKS, CUDA, BYTES - 1)
    assert str(raised.value) == (
        "--device cuda: the pipeline's networks take 16,416 bytes, 16,415 are free there: add "
        "--offload, which keeps them on the host and moves one block at a time"
    )


def test_with_it_the_largest_block_has_to():
    fit.require_fit(NETWORKS, OFFLOAD, 8000)
    line = r"unet\.blocks\.1, which moves as a whole, takes 8,000 bytes, 7,999 are free on cuda"
    with pytest.raises(UserError, match=line):
        fit.require_fit(NETWORKS, OFFLOAD, 7999)


def test_a_pipeline_is_refused_and_never_offloaded_unasked(loaded):
    with pretended_cuda(), pytest.raises(UserError, match="add --offload"):
        device.on_device(loaded, CUDA)
    assert visited_device(loaded.denoiser) is None


def test_an_offloaded_pipeline_stays_on_the_host(loaded):
    with pretended_cuda() as memory:
        assert device.on_device(loaded, OFFLOAD) is loaded
        assert memory.peak == 0
        networks = [part for part in loaded.pipe.components.values() if isinstance(part, nn.Module)]
        assert [visited_device(network).type for network in networks] == ["cuda", "cuda"]


def test_a_network_that_fits_goes_there_whole(loaded, monkeypatch):
    monkeypatch.setattr(fit, "free_bytes", lambda place: 10**6)
    with pretended_cuda():
        device.on_device(loaded, CUDA)
        assert all(isinstance(p.data, Pretended) for p in loaded.denoiser.parameters())
    assert visited_device(loaded.denoiser) is None


def test_the_host_needs_no_room(loaded):
    assert device.on_device(loaded, DEFAULT_TARGET) is loaded


def test_memory_that_the_allocator_keeps_for_itself_is_free(monkeypatch):
    monkeypatch.setattr(fit.torch.cuda, "mem_get_info", lambda place: (100, 1000))
    monkeypatch.setattr(fit.torch.cuda, "memory_reserved", lambda place: 70)
    monkeypatch.setattr(fit.torch.cuda, "memory_allocated", lambda place: 30)
    assert fit.free_bytes(torch.device("cuda")) == 140
    assert fit.free_bytes(torch.device("cpu")) is None
