"""How large a network is, by the files of its folder."""

import json

import pytest
import torch
from safetensors.torch import save_file

from quantarena.bench import machine
from quantarena.bench.plan.estimate import Rates
from quantarena.bench.plan.network_size import Size, network_size
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.workloads import registry

SD = {"block_out_channels": [320, 640, 1280, 1280], "sample_size": 64}
VAE = {"block_out_channels": [128, 256, 512, 512]}


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder of the configurations and weights that it is given."""

    def make(config, numbers, *, slot="unet", vae=None, name="diffusion_pytorch_model"):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "config.json").write_text(json.dumps(config))
        tensor = torch.zeros(numbers // 4, 4, dtype=torch.bfloat16)
        save_file({"w": tensor}, tmp_path / slot / f"{name}.safetensors")
        if vae is not None:
            (tmp_path / "vae").mkdir()
            (tmp_path / "vae" / "config.json").write_text(json.dumps(vae))
        return tmp_path

    return make


def test_weights_are_counted_and_not_their_bytes(folder):
    assert network_size(folder(SD, 43_000_000), 512, 7.5, 50).weights == pytest.approx(10)


def test_a_variant_of_the_same_weights_counts_once(folder):
    place = folder(SD, 43_000_000)
    again = place / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({"w": torch.zeros(43_000_000, dtype=torch.float16)}, again)
    assert network_size(place, 512, 7.5, 50).weights == pytest.approx(10)


def test_multiplications_of_stable_diffusions_unet(folder, monkeypatch):
    """859.5 million weights on 64x64 latents: 339 billion multiplications (counted elsewhere)."""
    from quantarena.bench.plan import network_size as module

    monkeypatch.setattr(module, "_numbers", lambda file: 859_500_000)
    place = folder(SD, 4, vae=VAE)
    found = network_size(place, 512, 1.0, 50)
    assert 0.7 < found.call * 220e6 / 339e9 < 1.4
    assert network_size(place, 512, 7.5, 50) == Size(found.weights, 2 * found.call, 50), "guidance"


def test_tokens_of_a_transformer_are_patches(folder):
    config = {"patch_size": 2, "sample_size": 32}
    place = folder(config, 43_000_000, slot="transformer")
    assert network_size(place, 0, 1.0, 20).call == pytest.approx(43e6 * 16**2 / 220e6)


@pytest.mark.parametrize("config", ["no json", "[]", '{"block_out_channels": "wide"}'])
def test_files_that_do_not_tell_count_as_the_models_that_ship(config, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(config)
    assert network_size(tmp_path, 0, 1.0, 9) == Size(1.0, 1.0, 9)
    assert network_size(tmp_path / "nothing", 0, 1.0, 9) == Size(1.0, 1.0, 9)


@pytest.mark.parametrize("name", ["emoji-t2i", "emoji-dit", "cifar10-uncond"])
def test_the_models_that_ship_are_the_measure(name):
    info = registry.resolve(name)
    found = network_size(info.path, info.resolution, info.guidance, info.steps)
    assert found.weights < 1.5
    assert found.call < 1.5


def test_a_large_network_takes_as_much_longer():
    small, large = Cell("small", "rtn", "w4a8"), Cell("large", "rtn", "w4a8")
    sizes = {"large": Size(100.0, 200.0, 50)}

    def size(workload):
        return sizes.get(workload, Size())

    known = Row(small, Status.OK, machine=machine.fingerprint(), seconds={"sample": 10.0})
    rates = Rates.of([known], machine.fingerprint(), size)
    assert rates.stage_seconds("sample", small) == pytest.approx(10)
    # its own steps count, not the 20 of the models that ship
    assert rates.stage_seconds("sample", large) == pytest.approx(10 * 200 * 50 / 20)
    assert rates.cell_seconds(large) > 100 * rates.cell_seconds(small) / 2
