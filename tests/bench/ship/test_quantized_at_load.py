"""``from_pretrained(float_folder, quantization_config=QuantArenaConfig(...))``."""

import pytest
import torch

from quantarena import QuantArenaConfig
from quantarena.bench.ship.packed_network import packed_of
from quantarena.methods.core.errors import UserError


@pytest.fixture
def load(pixel_folder, diffusers):
    def get(bits, **more):
        return diffusers.UNet2DModel.from_pretrained(
            pixel_folder / "unet", quantization_config=QuantArenaConfig(bits=bits), **more
        )

    return get


def in_pipeline(network, folder, diffusers):
    return diffusers.DDIMPipeline.from_pretrained(folder, unet=network)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a16"])
def test_it_draws_nearly_what_full_precision_draws(bits, load, pixel_folder, diffusers, pixels):
    network = load(bits)
    packed = packed_of(network)
    assert {str(width) for width in packed.widths().values()} == {bits}
    assert packed.backend in (["weight-only"] if bits == "w4a16" else ["packed", "reference"])
    plain = diffusers.DDIMPipeline.from_pretrained(pixel_folder)
    drawn, wanted = pixels(in_pipeline(network, pixel_folder, diffusers)), pixels(plain)
    apart = (wanted[0] - wanted[1]).abs().mean()
    assert 0 < (drawn - wanted).abs().mean() < apart / 4
    assert network.get_memory_footprint() < plain.unet.get_memory_footprint()


def test_layers_outside_of_the_blocks_stay_in_floating_point(load):
    layers = packed_of(load("w4a8")).layers
    assert "down_blocks.0.resnets.0.conv1" in layers
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & set(layers)


def test_it_is_saved_and_loaded_again(load, diffusers, same_files, tmp_path):
    network = load("w4a8")
    network.save_pretrained(tmp_path / "a")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "a")
    x, t = torch.randn(1, 3, 16, 16), torch.tensor(3)
    with torch.no_grad():
        assert torch.equal(network(x, t).sample, again(x, t).sample)
    again.save_pretrained(tmp_path / "b")
    same_files(tmp_path / "a", tmp_path / "b")
    assert again.config.quantization_config.meta["ranges"] == "at run time"


def test_ranges_belong_to_one_image(load):
    """No range was calibrated: an image does not depend on the others of its batch."""
    network, x, t = load("w4a8"), torch.randn(2, 3, 16, 16), torch.tensor(3)
    x[1] *= 50
    with torch.no_grad():
        for _ in range(8):  # until it is known which activation comes after which layer
            network(x, t)
        both = network(x, t).sample
        alone = network(x[:1], t).sample
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_floats_in_a_short_format(load):
    network = load("w8a8", torch_dtype=torch.bfloat16)
    assert network.dtype is torch.bfloat16
    with torch.no_grad():
        assert network(torch.randn(1, 3, 16, 16).bfloat16(), 3).sample.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"method": "q_diffusion"},
            "q_diffusion calibrates on pictures.*quantarena quantize F",
        ),
        ({"bits": "w4"}, "w4"),
        ({"bits": "fp"}, "weights need 1 to 8 bits"),
        ({"bits": "w16a8"}, "weights need 1 to 8 bits"),
        ({"bits": "w4a99"}, "99"),
    ],
)
def test_requests_that_cannot_be_met(given, line):
    with pytest.raises(UserError, match=line) as caught:
        QuantArenaConfig(**given)
    assert "\n" not in str(caught.value)


def test_a_network_without_blocks_is_refused(diffusers, tmp_path):
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    vae.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no repeated blocks"):
        diffusers.AutoencoderTiny.from_pretrained(tmp_path, quantization_config=QuantArenaConfig())


def test_the_configuration_says_what_it_is_in_one_line(load):
    assert repr(QuantArenaConfig(bits="w4a8")) == "QuantArenaConfig(bits='w4a8', method='rtn')"
    network = load("w4a8")
    shown = repr(network.config.quantization_config)
    assert shown == "QuantArenaConfig(packed, method='rtn', bits='w4a8')"


def test_a_whole_pipeline_names_its_component(pixel_folder, diffusers, pixels):
    from diffusers.quantizers import PipelineQuantizationConfig

    wanted = PipelineQuantizationConfig(quant_mapping={"unet": QuantArenaConfig(bits="w8a8")})
    pipe = diffusers.DiffusionPipeline.from_pretrained(pixel_folder, quantization_config=wanted)
    assert {str(b) for b in packed_of(pipe.unet).widths().values()} == {"w8a8"}
    assert torch.isfinite(pixels(pipe)).all()
