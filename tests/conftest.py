"""Tiny networks and pipelines with random weights, built once a session; one torch thread."""

import json

import pytest
import torch

from quantarena.methods import registry
from quantarena.methods.testing import networks as networks

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_plugins():
    """Plug-ins that a test loads end with it; the built-in methods, imported once, stay."""
    yield
    for name, found in list(registry._entries.items()):
        found[:] = [entry for entry in found if not entry.origin.startswith("plugin")]
        if not found:
            del registry._entries[name]
    registry._loaded.intersection_update({"packages"})


@pytest.fixture(scope="session")
def pixel():
    return networks.probe("pixel-unet", networks.pixel_unet)


@pytest.fixture(scope="session")
def conditional():
    return networks.probe("conditional-unet", networks.conditional_unet)


@pytest.fixture(scope="session")
def transformer():
    return networks.probe("transformer", networks.transformer)


@pytest.fixture(params=["pixel", "conditional", "transformer"])
def probe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def pixel_folder(tmp_path_factory):
    """A DDIM pipeline folder at 16x16 that asks for 4 steps."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        )
    folder = tmp_path_factory.mktemp("models") / "pixel"
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    (folder / "workload.json").write_text(json.dumps({"steps": 4, "resolution": 16}))
    return folder


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    """A guided, class-conditional transformer pipeline at 16x16 through a tiny autoencoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=4,
        )
    folder = tmp_path_factory.mktemp("models") / "classes"
    DiTPipeline(network, vae, DDIMScheduler()).save_pretrained(folder)
    settings = {
        "steps": 3,
        "guidance": 4.0,
        "resolution": 16,
        "conditions": {"kind": "class", "values": ["3", "5", "7"]},
    }
    (folder / "workload.json").write_text(json.dumps(settings))
    return folder
