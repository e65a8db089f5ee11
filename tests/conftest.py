"""Tiny networks and pipelines with random weights, built once a session; one torch thread.

Nothing heavy is imported here: tests that need neither torch nor the methods start at once.
"""

import gc
import json
import os
import sys
from pathlib import Path

import pytest

# Read when torch is first imported, here or in a process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"


NETWORKS = {"pixel", "conditional", "transformer", "pixel_folder", "class_folder"}
"""Fixtures that build a network, and run it or write it."""


def pytest_addoption(parser):
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out what is marked slow, gpu or browser, is a benchmark, or needs a network",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="run what is marked long, too: tests of minutes, which `make long` runs alone",
    )


WHOLE = ("bench/ship", "bench/training", "bench/workloads", "methods/testing", "methods/test_*")
"""Where whole pipelines are built, trained or quantized, below ``tests``."""


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--fast"):
        place = collection_path.relative_to(Path(__file__).parent)
        return any(place.match(pattern) for pattern in WHOLE) or None
    return None


def is_fast(item):
    """Whether a test belongs to those of a minute."""
    marked = any(item.get_closest_marker(name) for name in ("slow", "long", "gpu", "browser"))
    return not marked and not (NETWORKS | {"benchmark", "probe"}) & set(item.fixturenames)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=[item for item in items if not is_fast(item)])
        items[:] = filter(is_fast, items)
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: make long"))


@pytest.hookimpl(trylast=True)  # after the terminal's own
def pytest_configure(config):
    # Workers of xdist have no terminal: what they report is told once, by the process that has one.
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(_AtOnce(terminal))


class _AtOnce:
    """Name each failure when it happens: a run that is stopped never reaches its summary."""

    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = (crash.message if crash else str(report.longrepr)).strip().splitlines()
            self.terminal.write_line("")
            took = f"{report.when}, {report.duration:.0f} s"
            self.terminal.write_line(f"FAILED {report.nodeid} ({took}): {''.join(why[:1])[:300]}")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without looking for garbage: thousands of tests hold none, and looking is slow."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_plugins():
    """Plug-ins that a test loads end with it; the built-in methods, imported once, stay."""
    yield
    registry = sys.modules.get("quantarena.methods.registry")
    if registry is None:
        return
    for name, entries in list(registry._entries.items()):
        entries[:] = [entry for entry in entries if not entry.origin.startswith("plugin")]
        if not entries:
            del registry._entries[name]
    registry._loaded.intersection_update({"packages"})


@pytest.fixture(scope="session")
def diffusers():
    """The package, imported where a test runs: importing it takes longer than collecting all."""
    import diffusers

    return diffusers


def probe_of(name):
    """One of the conformance suite's networks with its trajectory."""
    from quantarena.methods.testing import networks

    return networks.probe(name, getattr(networks, name.replace("-", "_")))


@pytest.fixture(scope="session")
def pixel():
    return probe_of("pixel-unet")


@pytest.fixture(scope="session")
def conditional():
    return probe_of("conditional-unet")


@pytest.fixture(scope="session")
def transformer():
    return probe_of("transformer")


@pytest.fixture(params=["pixel", "conditional", "transformer"])
def probe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def pixel_folder(tmp_path_factory):
    """A DDIM pipeline folder at 16x16 that asks for 4 steps."""
    import torch
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
    import torch
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
