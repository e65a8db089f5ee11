"""Where and how a cell's networks run: names, keys, refusals."""

from dataclasses import replace

import pytest

from quantarena.bench.devices import device
from quantarena.bench.errors import UserError
from quantarena.bench.plan import lookup
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.target import DEFAULT_TARGET, Target, checked_target

CELL = Cell("emoji-dit", "rtn", "w4a8")


def test_without_options_it_is_the_default():
    assert checked_target() == DEFAULT_TARGET == Target("cpu", "fp32", 1, "torch")
    assert DEFAULT_TARGET.label == ""


def test_names_are_read_in_any_case():
    assert checked_target("CUDA:1", "BF16", 2) == Target("cuda:1", "bf16", 2)
    assert checked_target("cuda:1").kind == "cuda"


def test_the_label_names_what_differs():
    assert Target("cuda", "bf16", 4).label == "cuda, bf16, 4 threads"
    assert Target(runtime="openvino").label == "openvino"
    assert Target("cuda", offload=True).label == "cuda, offload"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"device": "gpu"}, "--device gpu: it must be cpu, mps, cuda or cuda:NUMBER"),
        ({"device": "cuda:x"}, "--device cuda:x: it must be"),
        ({"dtype": "bf61"}, "--dtype bf61: .*bf16"),
        ({"threads": 0}, "--threads 0: it must be from 1"),
        ({"runtime": "onyx"}, "--runtime onyx: .*onnx"),
        ({"runtime": "onnx", "dtype": "bf16"}, "ONNX Runtime computes in fp32"),
        ({"dtype": "fp16"}, "--dtype fp16 needs a GPU"),
        ({"device": "cuda", "runtime": "openvino"}, "--runtime openvino runs on the CPU"),
        ({"offload": True}, "--offload keeps networks on the host .* --device cuda --offload"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(asked, line):
    with pytest.raises(UserError, match=line):
        checked_target(**asked)


def test_the_default_leaves_keys_as_they_were():
    # the key of this cell before targets and further batches existed
    old = Cell("cifar10-uncond", "rtn", "w4a8", budget=Budget(images=64))
    assert old.key == "f70d77986de1ed84"
    assert replace(old, target=Target(threads=2)).key != old.key
    assert replace(old, budget=replace(old.budget, latency_batches=(1,))).key != old.key


def test_a_target_without_offloading_has_the_key_that_it_had():
    plain = replace(CELL, target=Target("cuda"))
    assert (plain.key, plain.shared_key) == ("f4d06cd632851e08", "1dd227f78e9f773f")
    offloaded = replace(CELL, target=checked_target("cuda", offload=True))
    assert offloaded.key != plain.key
    assert offloaded.shared_key != plain.shared_key


def test_only_another_device_records_anew():
    assert replace(CELL, target=Target(dtype="bf16")).shared_key == CELL.shared_key
    assert replace(CELL, target=Target("cuda")).shared_key != CELL.shared_key


def test_a_label_says_the_target():
    assert replace(CELL, target=Target("cuda", "bf16")).label == "emoji-dit/rtn/w4a8/cuda/bf16"


@pytest.mark.skipif(device.torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_named():
    with pytest.raises(UserError, match="--device cuda: torch finds no CUDA device here"):
        lookup.check_target(Target("cuda"))


@pytest.mark.parametrize(("runtime", "library"), [("openvino", "openvino"), ("onnx", "onnx")])
def test_an_absent_runtime_is_named(monkeypatch, runtime, library):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{library} is not installed: pip install"):
        lookup.check_target(Target(runtime=runtime))


def test_a_row_names_the_processor():
    found = device.describe_device(DEFAULT_TARGET)
    assert found.kind == "cpu"
    assert found.name
    assert found.memory_bytes > 2**20
    assert found.driver is None


def test_a_row_names_the_gpu_with_clocks_and_power(monkeypatch):
    class Properties:
        name, uuid, total_memory = "NVIDIA H100", "abc", 80 * 2**30

    monkeypatch.setattr(device.torch.cuda, "get_device_properties", lambda d: Properties)
    said = {}

    def nvidia_smi(fields, form="", gpu=None):
        said["gpu"] = gpu
        return ("550.1", "1980", "2619", "[N/A]")

    monkeypatch.setattr(device.machine, "nvidia_smi", nvidia_smi)
    found = device.describe_device(Target("cuda"))
    assert said["gpu"] == "GPU-abc"
    assert (found.kind, found.name, found.driver) == ("cuda", "NVIDIA H100", "550.1")
    assert (found.clock_mhz, found.memory_clock_mhz, found.power_cap_w) == (1980, 2619, None)
