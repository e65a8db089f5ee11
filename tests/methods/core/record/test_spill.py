"""Recordings larger than the memory they may take."""

import hashlib
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from quantarena.bench.memory import peak_growth
from quantarena.methods.core.record import tensor_file
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.spill import Spool
from quantarena.methods.core.record.tensor_file import Column
from quantarena.methods.core.record.trajectory import Trajectory

CALLS, RUNS, PIECE = 12, 2, (2, 8, 128, 128)
ONE = 4 * 2 * 8 * 128 * 128
"""Bytes of one call's samples: 1 MB."""
SIZE = CALLS * RUNS * ONE
LIMIT = 4 << 20


class Wide(nn.Module):
    def forward(self, sample, timestep, context=None, return_dict=True):
        return (sample,)


def piece(number):
    return torch.full(PIECE, float(number)) + torch.arange(2).reshape(2, 1, 1, 1) / 2


@torch.no_grad()
def record(memory, folder, save=None):
    """Conditions are 1 MB a run, the same at every call."""
    model = Wide()
    with recording(model, memory=memory, folder=folder) as done:
        for run in range(RUNS):
            context = piece(-1 - run)
            for call in range(CALLS):
                model(piece(CALLS * run + call), 100 - call, context=context)
    if save is not None:
        done.save(save)
        return Trajectory.load(save)
    return done()


def measure(folder):
    """Peak bytes: recording to a file, within the limit, in memory; loading; picking."""
    found = []
    record(1 << 20, folder)  # what is loaded on first use
    return [
        peak_growth(lambda: record(LIMIT, folder, folder / "t")),
        peak_growth(lambda: record(LIMIT, folder)),
        peak_growth(lambda: record(1 << 30, folder)),
        peak_growth(lambda: found.append(Trajectory.load(folder / "t"))),
        peak_growth(lambda: found.append(found[0].pick(torch.tensor([3]), torch.tensor([1])))),
    ]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_memory_stays_below_the_limit_and_loading_reads_nothing(tmp_path):
    code = (
        "import json, pathlib, runpy, sys\n"
        "names = runpy.run_path(sys.argv[1])\n"
        "print(json.dumps(names['measure'](pathlib.Path(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},  # what is freed is given back
    )
    saving, spilling, keeping, loading, picking = json.loads(done.stdout.splitlines()[-1])
    if not keeping:
        pytest.skip("peak memory cannot be read here")
    assert keeping > SIZE, "the measurement does not see the recording"
    assert max(saving, spilling) < LIMIT + 4 * ONE  # and what one call holds
    assert loading < ONE
    assert picking < 6 * ONE


def test_spilled_and_kept_recordings_are_the_same_bit_by_bit(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    kept = record(1 << 30, tmp_path)
    kept.save(files[0])
    spilled = record(1 << 20, tmp_path)
    spilled.save(files[1])
    record(1 << 20, tmp_path, files[2])
    record(1 << 30, tmp_path, files[3])
    assert len({digest(file) for file in files}) == 1
    assert torch.equal(kept.sample, spilled.sample)
    assert spilled.sample[3, :, 0, 0, 0].tolist() == [3, 3.5, 15, 15.5]
    assert kept.conditions["context"].stride(0) == spilled.conditions["context"].stride(0) == 0
    assert sorted(tmp_path.iterdir()) == files, "temporary files were left behind"


def test_a_mapped_trajectory_cannot_change_its_file(tmp_path):
    recorded = record(1 << 30, tmp_path, tmp_path / "t")
    before = digest(tmp_path / "t")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded.sample[0] += 1
    assert recorded.sample[0, 0, 0, 0, 0] == 1
    assert digest(tmp_path / "t") == before


@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_a_spool_gives_back_what_was_put_and_keeps_content_once(limit, tmp_path):
    spool = Spool(limit, tmp_path)
    given = [
        torch.arange(12).reshape(3, 4),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0),
        torch.tensor(3.5, dtype=torch.bfloat16),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.tensor([1, 0], dtype=torch.uint8),  # the same bytes
    ]
    numbers = [spool.put(value) for value in given]
    assert [spool.put(value.clone()) for value in given] == numbers
    assert len(set(numbers)) == len(given)
    assert spool.bytes == sum(v.numel() * v.element_size() for v in given)
    assert spool.spilled == (limit < 198)
    for number, value in zip(numbers, given, strict=True):
        assert torch.equal(spool.get(number), value)
        assert spool.get(number).dtype == value.dtype
    given[0] += 1
    assert spool.get(numbers[0])[0, 0] == 0, "the spool shares memory with what it was given"
    assert list(tmp_path.iterdir()) == [], "its file has a name"


def test_a_file_of_every_type_comes_back(tmp_path):
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ]
    tensors = {str(d): torch.randint(0, 2, (3, 5)).to(d) for d in dtypes}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    columns = {name: Column(t.dtype, tuple(t.shape), [t]) for name, t in tensors.items()}
    tensor_file.write(tmp_path / "t", columns, {"key": "ä"})
    found, notes = tensor_file.read(tmp_path / "t")
    assert notes == {"key": "ä"}
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize(
    ("pieces", "match"),
    [
        ([torch.zeros(3)], "has 12 bytes"),
        ([torch.zeros(2), torch.zeros(2).double()], "a piece of it is torch.float64"),
    ],
)
def test_pieces_have_to_make_up_their_column(pieces, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        tensor_file.write(tmp_path / "t", {"x": Column(torch.float32, (4,), pieces)}, {})


def test_a_type_without_a_name_is_refused(tmp_path):
    column = Column(torch.complex128, (1,), [torch.zeros(1, dtype=torch.complex128)])
    with pytest.raises(ValueError, match=r"x is torch\.complex128"):
        tensor_file.write(tmp_path / "t", {"x": column}, {})
