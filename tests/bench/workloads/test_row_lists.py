"""Networks that take lists of images, called by tensors."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads.pipeline import find_slot
from quantarena.bench.workloads.row_lists import stack_rows, takes_lists

tiny = runpy.run_path(str(Path(__file__).parents[1] / "tiny_llm_pipelines.py"))


@pytest.fixture(scope="module")
def pipe():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = tiny["z_image"]()
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipe(
        ["a cat", "a red dog in snow"],
        generator=generators,
        num_inference_steps=2,
        height=16,
        width=16,
        output_type="np",
    ).images


def test_the_pipeline_draws_what_it_drew_before(pipe):
    before, network = draw(pipe), pipe.transformer
    names, kind = list(network.state_dict()), type(network)
    assert takes_lists(network)
    assert find_slot(pipe, "x") == "transformer"
    stack_rows(network)
    stacked = type(network)
    stack_rows(network)
    assert type(network) is stacked, "twice is once"
    assert isinstance(network, kind)
    assert (type(network).__name__, list(network.state_dict())) == (kind.__name__, names)
    assert (draw(pipe) == before).all()
    pipe.transformer = copy.deepcopy(network)
    assert (draw(pipe) == before).all()


def test_hooks_see_tensors_and_the_caller_a_list(pipe):
    network, seen = pipe.transformer, []
    stack_rows(network)
    handle = network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    images, texts = [torch.rand(4, 1, 8, 8)] * 2, [torch.rand(3, 16), torch.rand(5, 16)]
    times = torch.tensor([0.5, 0.5])
    with torch.no_grad():
        listed = network(images, times, texts, return_dict=False)[0]
        handle.remove()
        ((args, kwargs),) = seen
        assert kwargs["row_masks"]["cap_feats"].sum(1).tolist() == [3, 5]
        again = network(*args, **kwargs)[0]
        # padding of a longer batch changes nothing
        kwargs["cap_feats"] = torch.nn.functional.pad(kwargs["cap_feats"], (0, 0, 0, 4), value=9.0)
        mask = torch.nn.functional.pad(kwargs["row_masks"]["cap_feats"], (0, 4))
        padded = network(*args, **kwargs | {"row_masks": {"cap_feats": mask}})[0]
        named = network(images, times, texts).sample
    assert isinstance(listed, list)
    assert isinstance(named, list)
    assert torch.equal(torch.stack(listed), again)
    assert torch.equal(torch.stack(named), again)
    assert torch.equal(again, padded)
    assert tuple(args[0].shape) == (2, 4, 1, 8, 8)
    assert set(kwargs) >= {"timestep", "cap_feats"}


def test_images_of_two_sizes_are_refused(pipe):
    stack_rows(pipe.transformer)
    with pytest.raises(BrokenModel, match="one list of images of one size"):
        pipe.transformer([torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 6)], torch.ones(2), [])
