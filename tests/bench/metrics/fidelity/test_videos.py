"""Metrics of videos: planted shifts and flicker, and the video as the unit."""

import numpy as np
import pytest
import torch

from quantarena.bench.metrics.fidelity.fidelity import fidelity, summarise
from quantarena.bench.metrics.fidelity.videos import frame_changes, video_fidelity
from quantarena.bench.metrics.image_folder import load_folder, save_videos, strip
from quantarena.bench.metrics.images import BadImages
from quantarena.bench.metrics.names import FIDELITY, FRAME_CHANGES, LPIPS, PSNR
from quantarena.bench.stages.score import ScoreInputs, score

FRAMES, VIDEOS, SIDE = 5, 3, 16


@pytest.fixture
def videos():
    """A patch that moves over a gray ground, another one in each video."""
    made = torch.full((VIDEOS, FRAMES, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    for video in range(VIDEOS):
        for k in range(FRAMES):
            made[video, k, video, 4:8, 2 * k : 2 * k + 4] = 180
    return made.flatten(0, 1)


def flicker(videos, levels):
    """Every second frame is brighter."""
    other = videos.clone().reshape(VIDEOS, FRAMES, 3, SIDE, SIDE)
    other[:, 1::2] += levels
    return other.flatten(0, 1)


def test_equal_videos_have_no_difference(videos):
    assert frame_changes(videos, videos, FRAMES).tolist() == [0.0] * VIDEOS


@pytest.mark.parametrize("levels", [1, 10, 60])
def test_a_shift_of_all_frames_is_none_and_flicker_is_its_size(videos, levels):
    assert frame_changes(videos, videos + levels, FRAMES).tolist() == [0.0] * VIDEOS
    assert frame_changes(videos, flicker(videos, levels), FRAMES).tolist() == [levels] * VIDEOS
    shifted = fidelity(videos, videos + levels)[PSNR].mean()
    flickering = fidelity(videos, flicker(videos, levels))[PSNR].mean()
    assert flickering > shifted, "frame by frame, flicker looks nearer: half its frames are equal"


def test_motion_that_is_missing_counts(videos):
    still = videos.reshape(VIDEOS, FRAMES, 3, SIDE, SIDE)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    found = frame_changes(videos, still.flatten(0, 1), FRAMES)
    # 4 rows, of which 2 + 2 pixels change by 80 in one of three channels
    assert found == pytest.approx([80 * 4 * 4 / (3 * SIDE * SIDE)] * VIDEOS)


def test_values_belong_to_videos_and_not_to_frames(videos):
    other = videos.clone()
    other[FRAMES : 2 * FRAMES] = flicker(videos, 20)[FRAMES : 2 * FRAMES]
    found = video_fidelity(videos, other, FRAMES)
    by_frame = fidelity(videos, other)
    assert set(found) == {*by_frame, FRAME_CHANGES}
    for name, values in by_frame.items():
        assert found[name] == pytest.approx(values.reshape(VIDEOS, FRAMES).mean(1))
    assert found[LPIPS][0] == found[LPIPS][2] == found[FRAME_CHANGES][0] == 0
    assert found[FRAME_CHANGES][1] == 20
    by_name = {m.name: m for m in summarise(found)}
    assert by_name[FRAME_CHANGES].n == by_name[LPIPS].n == VIDEOS
    assert not by_name[FRAME_CHANGES].higher_is_better


def test_images_have_no_metric_of_videos(videos):
    assert FRAME_CHANGES not in video_fidelity(videos, videos, 0)
    assert FRAME_CHANGES not in {m.name for m in summarise(fidelity(videos, videos))}


def test_a_video_of_one_frame_has_no_change(videos):
    assert frame_changes(videos, videos + 5, 1).tolist() == [0.0] * VIDEOS * FRAMES


def test_half_a_video_is_refused(videos):
    with pytest.raises(BadImages, match="15 frames are no videos of 4 frames"):
        frame_changes(videos, videos, 4)


def test_the_score_of_videos_says_what_they_have_not(videos):
    inputs = ScoreInputs(videos, flicker(videos, 9), None, prompts=("a",) * 3, frames=FRAMES)
    seen = []
    scores = score(inputs, progress=lambda *count: seen.append(count))
    values = {m.name: m for m in scores.measurements}
    assert values[FRAME_CHANGES].value == 9
    assert scores.per_image[FRAME_CHANGES].shape == (VIDEOS,)
    others = [m for m in scores.measurements if m.name not in (*FIDELITY, FRAME_CHANGES)]
    assert len(others) > 5
    assert {m.reason for m in others} == {
        "the workload draws videos, whose frames are no independent images"
    }
    assert seen[-1] == ("lpips", VIDEOS, VIDEOS)


def test_pictures_of_a_video_are_a_strip_and_its_frames(videos, tmp_path):
    save_videos(videos, FRAMES, tmp_path)
    assert sorted(f.name for f in tmp_path.glob("*.png")) == ["0000.png", "0001.png", "0002.png"]
    second = load_folder(tmp_path / "0001").images
    assert torch.equal(second, videos[FRAMES : 2 * FRAMES])
    shown = strip(second)
    assert shown.shape == (SIDE, 4 * SIDE, 3)
    assert np.array_equal(shown[:, :SIDE], second[0].permute(1, 2, 0))
    assert np.array_equal(shown[:, -SIDE:], second[-1].permute(1, 2, 0))
