"""Two sources stand on one board only if their full precision draws the same images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.metrics.fidelity.fidelity import fidelity, summarise
from quantarena.bench.metrics.image_folder import save_folder
from quantarena.bench.scores import UNITS
from quantarena.bench.share.merge import merge
from quantarena.bench.share.provenance import SOURCE, Standing
from quantarena.bench.share.submit import submit
from quantarena.bench.share.verify import verify
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Store, signed_text

BUDGET = Budget(images=4, batch=2, calibration_images=2, calibration_samples=8)
FULL = Cell("emoji-dit", "fp", "fp", budget=BUDGET).key


def drawn(folder, row, images, reference):
    """Give a row other images, with scores and hashes that fit them."""
    save_folder(images, folder / "images" / row.key)
    values = fidelity(reference, images)
    file = folder / "scores" / f"{row.key}.npz"
    np.savez_compressed(file, **values, **{UNITS: np.arange(4.0)})
    names = [f"{number:04d}.png" for number in range(4)]
    listing = {name: bytes_sha256(folder / "images" / row.key / name) for name in names}
    hashes = {"images_sha256": listing_sha256(listing), "scores_sha256": bytes_sha256(file)}
    measured = summarise(values, seed=0, groups=(0, 1, 2, 3))
    new = replace(row, measurements=measured, artefacts=row.artefacts | hashes)
    (folder / "rows" / f"{row.key}.json").write_text(signed_text(new))


@pytest.fixture
def shifted(world):
    """Let the second machine's images be others: full precision's by so much, all else by one."""

    def shifted(by):
        folder = world / "two"
        rng = np.random.default_rng(3)
        noise = rng.normal(0, by, (4, 3, 32, 32)) if by else np.zeros((4, 3, 32, 32))
        first = np.random.default_rng(7).integers(40, 200, (4, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
        full = torch.from_numpy(np.clip(first + noise, 0, 255).astype(np.uint8))
        for row in Store(folder).rows():
            near = (full.int() + 1).clamp(0, 255).to(torch.uint8)
            drawn(folder, row, full if row.key == FULL else near, full)
        submit(folder, world / "sent", name="sent", share=1.0)
        assert verify(world / "sent", share=1.0).passed  # they fit one another
        return world / "sent"

    return shifted


def joined(world, *folders):
    return merge(folders, world / "out", title="t", command="c")


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_lean_on_other_images_are_left_out(shifted, world, first):
    """Their own images fit one another, and being named first gives them no board."""
    folders = (shifted(30.0), world / "one")
    done = joined(world, *(folders if first else reversed(folders)))
    left_out = {one.source for one in done.provenance.left_out}
    assert left_out == {"sent"}
    assert len(done.provenance.left_out) == 5
    assert "its full precision is not that of one" in done.provenance.left_out[0].reason
    assert all(SOURCE not in row.machine for row in Store(world / "out").rows())


def test_images_that_differ_by_rounding_are_the_same(shifted, world):
    sent = shifted(0.3)
    ours, theirs = (folder / "images" / FULL / "0000.png" for folder in (world / "one", sent))
    assert ours.read_bytes() != theirs.read_bytes()
    done = joined(world, world / "one", sent)
    assert done.provenance.left_out == ()
    assert {one.standing for one in done.provenance.origins.values()} == {Standing.VERIFIED}


def test_what_cannot_be_compared_is_self_reported(shifted, world):
    sent = shifted(30.0)
    for file in (world / "one" / "images" / FULL).glob("*.png"):
        file.unlink()
    done = joined(world, sent, world / "one")
    found = done.provenance.origins
    assert {one.source for one in found.values()} == {"one", "sent"}
    assert {one.standing for one in found.values()} == {Standing.SELF_REPORTED}
    assert done.provenance.left_out == ()
    theirs = [one for one in found.values() if one.source == "sent"]
    assert all("could not be compared with those of one" in one.reasons[-1] for one in theirs)
