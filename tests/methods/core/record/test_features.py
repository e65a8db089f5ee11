import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import BrokenModel, UserError
from quantarena.methods.core.record.features import FeatureTap, features, middle_module
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import Trajectory


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
def test_features_of_the_first_rows_at_every_call(
    diffusers, sample_once, noise, tap, shape, tmp_path
):
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


def test_features_that_cannot_be_had_say_so(diffusers, sample_once, noise):
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
    record = Trajectory(noise(2).expand(2, -1, -1, -1, -1), torch.tensor([5, 1]), {})
    with pytest.raises(BrokenModel, match="unused did not run"):
        features(model, record, FeatureTap("unused"))


def test_the_middle_is_the_attention_of_the_lowest_resolution(pixel, conditional, transformer):
    assert middle_module(pixel.graph).startswith("mid_block.attentions.0")
    assert middle_module(conditional.graph) == ("mid_block.attentions.0.transformer_blocks.0.attn1")
    assert middle_module(transformer.graph) == "transformer_blocks.0.attn1"
