"""A pipeline that cannot be quantized says whose fault it is."""

import shutil

from quantarena.bench.cli.main import run


def test_a_network_that_gives_nan_in_full_precision_is_named(
    pixel_folder, tmp_path, capsys, diffusers
):
    pipe = diffusers.DDIMPipeline.from_pretrained(pixel_folder)
    pipe.unet.conv_norm_out.weight.data.fill_(3e38)  # every weight is finite, the output is not
    pipe.save_pretrained(tmp_path / "wild")
    shutil.copy(pixel_folder / "workload.json", tmp_path / "wild")
    capsys.readouterr()
    given = ("--method", "rtn", "--bits", "w8a8", "--cache", tmp_path / "cache", "-q")
    code = run(["quantize", *map(str, (tmp_path / "wild", *given, "-o", tmp_path / "out"))])
    told = capsys.readouterr().err
    assert code == 2
    assert "the full-precision network, before any quantization, produced NaN or infinity" in told
    assert told.count("\n") == 1
