"""diffusers' own ways with LoRA, on pipelines whose denoiser is packed."""

import copy
import json
import pickle
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from quantarena.methods.core.errors import Unsupported, UserError

TINY = Path(__file__).parent.parent / "tiny_pipelines.py"
TARGETS = {
    "one": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in"],
    "two": ["to_q", "ff.net.0.proj"],
    "text": ["to_v"],
}


def write_lora(pipe, slot, folder, targets, seed, *, text=False):
    """A LoRA with random factors for the float network of a pipeline, as diffusers saves it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 6, "init_lora_weights": False, "lora_dropout": 0.5}
    network = copy.deepcopy(getattr(pipe, slot))
    network.add_adapter(LoraConfig(target_modules=targets, **settings))
    given = {
        f"{slot}_lora_layers": get_peft_model_state_dict(network),
        f"{slot}_lora_adapter_metadata": network.peft_config["default"].to_dict(),
    }
    if text:
        encoder = copy.deepcopy(pipe.text_encoder)
        assert isinstance(encoder, CLIPTextModel)
        encoder.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], **settings))
        given["text_encoder_lora_layers"] = get_peft_model_state_dict(encoder)
        given["text_encoder_lora_adapter_metadata"] = encoder.peft_config["default"].to_dict()
    pipe.save_lora_weights(folder, **given)
    return folder


@pytest.fixture(scope="session")
def loras(text_folder, tmp_path_factory):
    """Folders of adapters by name."""
    pytest.importorskip("peft")
    from diffusers import DiffusionPipeline

    pipe, root = DiffusionPipeline.from_pretrained(text_folder), tmp_path_factory.mktemp("loras")
    return {
        name: write_lora(pipe, "unet", root / name, TARGETS[name], seed, text=name == "text")
        for seed, name in enumerate(TARGETS)
    }


@pytest.fixture(scope="session")
def packed_folder(text_folder, ship):
    return ship(text_folder, "lora-base", "rtn", "w4a8")


def opened(folder):
    from diffusers import DiffusionPipeline

    import quantarena  # noqa: F401  (lets diffusers read packed weights)

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(packed_folder):
    return opened(packed_folder)


def draw(pipe, **more):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 16, "width": 16}
    noise = torch.Generator().manual_seed(5)
    words = {"output_type": "latent", "generator": noise}
    return pipe("a red cat", **settings, **words, **more).images


def same(one, other):
    return torch.equal(one, other)


def load(pipe, loras, *names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft announces the second adapter
        for name in names:
            pipe.load_lora_weights(loras[name], adapter_name=name)


def test_loaded_scaled_switched_and_unloaded_bit_for_bit(pipe, loras):
    plain = draw(pipe)
    load(pipe, loras, "one")
    one = draw(pipe)
    assert not same(one, plain)
    load(pipe, loras, "two")
    pipe.set_adapters(["one", "two"], [0.7, 0.4])
    both = draw(pipe)
    assert not same(both, one)
    assert same(draw(pipe), both)  # no dropout is left on, though its settings had one
    pipe.disable_lora()
    assert same(draw(pipe), plain)
    pipe.enable_lora()
    assert same(draw(pipe), both)
    assert not same(draw(pipe, cross_attention_kwargs={"scale": 0.3}), both)
    assert same(draw(pipe), both)
    assert same(draw(pipe, cross_attention_kwargs={"scale": 0.0}), plain)
    pipe.set_adapters("two", 1.0)
    two = draw(pipe)
    pipe.delete_adapters("one")
    assert same(draw(pipe), two)
    pipe.unload_lora_weights()
    assert same(draw(pipe), plain)


def test_the_adapter_is_added_to_what_the_packed_layers_compute(pipe, loras):
    load(pipe, loras, "one", "two")
    pipe.set_adapters(["one", "two"], [0.7, 0.4])
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(2, 5, layer.in_features)
    with torch.no_grad():
        wanted = layer.base_layer.value(x)
        for name, weight in (("one", 0.7), ("two", 0.4)):
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            wanted = wanted + weight * 2.0 * (x @ down.T @ up.T)  # alpha / r is 2
        torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)


def test_fused_it_is_a_branch_that_stays_when_adapters_are_unloaded_and_is_saved(
    pipe, loras, tmp_path
):
    from quantarena.methods.core.packed.nodes.wrappers import LowRankLayer

    plain = draw(pipe)
    load(pipe, loras, "one", "two")
    pipe.set_adapters(["one", "two"], [0.7, 0.4])
    alone = draw(pipe)
    pipe.fuse_lora(components=["unet"], safe_fusing=True)
    fused = draw(pipe)
    apart = (alone - plain).abs().mean()
    assert (fused - alone).abs().mean() < apart / 10  # a last bit may move an 8-bit code
    assert pipe.num_fused_loras == 2
    with pytest.raises(UserError, match=r"saved without adapters: call unload_lora_weights"):
        pipe.unet.save_pretrained(tmp_path / "early")
    pipe.unfuse_lora(components=["unet"])
    assert same(draw(pipe), alone)
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    assert same(draw(pipe), fused)
    assert any(isinstance(m, LowRankLayer) for m in pipe.unet.modules())
    pipe.save_pretrained(tmp_path / "fused")
    assert same(draw(opened(tmp_path / "fused")), fused)


def test_saved_again_it_is_the_same_file(pipe, loras, tmp_path):
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    load(pipe, loras, "one")
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet, adapter_name="one"),
        unet_lora_adapter_metadata=pipe.unet.peft_config["one"].to_dict(),
    )
    before, after = (
        load_file(folder / "pytorch_lora_weights.safetensors")
        for folder in (loras["one"], tmp_path)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pipe.unet.save_lora_adapter(tmp_path / "network", adapter_name="one")
    one = draw(pipe)
    pipe.unload_lora_weights()
    pipe.unet.load_lora_adapter(
        tmp_path / "network", prefix=None, adapter_name="again", use_safetensors=True
    )
    assert same(draw(pipe), one)


def test_text_encoders_take_theirs(pipe, loras):
    plain = draw(pipe)
    load(pipe, loras, "text")
    text = draw(pipe)
    pipe.unet.disable_lora()
    only = draw(pipe)
    assert not same(only, plain)
    assert not same(only, text)
    pipe.unload_lora_weights()
    assert same(draw(pipe), plain)


def test_copies_and_pickles_have_the_adapters(pipe, loras):
    load(pipe, loras, "one")
    one = draw(pipe)
    for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert same(draw(twin), one)
        twin.unload_lora_weights()
        assert not same(draw(twin), one)
    assert same(draw(pipe), one)


def test_a_recorded_step_sees_adapters_and_their_scales(pipe, loras):
    from quantarena.methods.core.kernels.native import status

    if status().backend != "packed":
        pytest.skip("no native kernels: nothing is recorded")
    pipe.unet.record_step(exact=True)
    told = vars(pipe.unet)["_recorded_step"].told
    plain = draw(pipe)
    calls = told.replayed  # of the network, for one image
    assert calls >= 2
    load(pipe, loras, "one")
    one = draw(pipe)
    pipe.set_adapters("one", 0.5)
    half = draw(pipe)
    pipe.fuse_lora(components=["unet"])
    fused = draw(pipe)
    pipe.unfuse_lora(components=["unet"])
    pipe.disable_lora()
    off = draw(pipe)
    assert (told.replayed, told.eager) == (5 * calls, 0)
    pipe.enable_lora()
    pipe.unet.record_step(on=False)
    assert same(draw(pipe), half)
    pipe.set_adapters("one", 1.0)
    assert same(draw(pipe), one)
    pipe.set_adapters("one", 0.5)
    pipe.fuse_lora(components=["unet"])
    assert same(draw(pipe), fused)
    pipe.unfuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    assert same(draw(pipe), plain)
    assert same(off, plain)


def test_patterns_that_reach_into_packed_layers_are_refused(pipe):
    lora = pytest.importorskip("peft")
    plain = draw(pipe)
    config = lora.LoraConfig(r=2, target_modules=r".*\.attn1\.to_q(\..*)?", init_lora_weights=False)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    nested = pipe.unet.get_submodule(name)
    parent = pipe.unet.get_submodule(name.rpartition(".")[0])
    from quantarena.methods.core.packed.nodes.wrappers import Wrapper

    parent.to_q = Wrapper(nested)
    with pytest.raises(UserError, match=r"takes .*to_q.*inner, a part of a packed layer"):
        pipe.unet.add_adapter(config)
    parent.to_q = nested
    assert same(draw(pipe), plain)


def test_layers_that_became_tables_are_refused_by_name(pipe, loras):
    from quantarena.methods.core.model.time_table import ScheduledTable

    plain = draw(pipe)
    block = pipe.unet.down_blocks[0].resnets[0]
    keep, block.conv1 = block.conv1, ScheduledTable(torch.zeros(2, 3), pipe.unet.clock)
    with pytest.raises(Unsupported, match=r"layers of down_blocks\.0\.resnets\.0\.conv1"):
        pipe.load_lora_weights(loras["one"])
    block.conv1 = keep
    assert same(draw(pipe), plain)


def adapted(network):
    return {name: m for name, m in network.named_modules() if hasattr(m, "merged_adapters")}


def inputs_of(layers, call):
    """What each layer is given first while something is called."""
    found, hooks = {}, []
    for name, layer in layers.items():

        def note(module, given, output, name=name):
            found.setdefault(name, given[0])

        hooks.append(layer.register_forward_hook(note))
    call()
    for hook in hooks:
        hook.remove()
    return found


def branch(layer, x):
    """What a layer's adapters add."""
    return layer(x) - layer.base_layer(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_other_classes_take_adapters(name, ship, tmp_path):
    """Each layer gets the adapter's product, to the last places of a float.

    Images are no measure here: what a strong adapter adds leaves the ranges of these random
    networks.
    """
    pytest.importorskip("peft")
    folder = runpy.run_path(str(TINY))["save"](name, tmp_path / name)
    values = {"kind": "prompt", "values": ["a red cat", "a dog in snow"]}
    settings = {"steps": 2, "guidance": 3.0, "resolution": 16, "conditions": values}
    (folder / "workload.json").write_text(json.dumps(settings))
    float_pipe = opened(folder)
    slot = "unet" if name == "sdxl" else "transformer"
    lora = write_lora(float_pipe, slot, tmp_path / "lora", ["to_q", "to_k", "to_v"], 1)
    pipe = opened(ship(folder, f"lora-{name}", "rtn", "w8a8"))
    plain = draw(pipe)
    for each in (pipe, float_pipe):
        each.load_lora_weights(lora, adapter_name="a")
        getattr(each, slot).eval()
    ours, wanted = (adapted(getattr(each, slot)) for each in (pipe, float_pipe))
    assert ours.keys() == wanted.keys() != set()
    given = inputs_of(wanted, lambda: draw(float_pipe))
    with torch.no_grad():
        alone = {key: branch(layer, given[key]) for key, layer in ours.items()}
        for key, layer in wanted.items():
            torch.testing.assert_close(alone[key], branch(layer, given[key]), rtol=1e-4, atol=1e-4)
    assert not torch.equal(draw(pipe), plain)
    pipe.load_lora_weights(lora, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    with torch.no_grad():
        for key, layer in ours.items():
            torch.testing.assert_close(branch(layer, given[key]), alone[key], rtol=1e-4, atol=1e-4)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe).numpy(), plain.numpy())


def test_without_peft_it_says_what_to_install(pipe, monkeypatch):
    from quantarena.bench.adapters import register, request

    monkeypatch.setattr(request, "peft_is_there", lambda: False)
    register.register_with_peft.cache_clear()
    with pytest.raises(UserError, match=r"needs peft: pip install 'quantarena\[lora\]'"):
        pipe.unet.load_lora_adapter({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, prefix="unet")
