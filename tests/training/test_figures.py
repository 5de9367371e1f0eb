"""Figures: the layout of the pictures, pixel by pixel."""

import json

import numpy as np
import pytest
from PIL import Image

from dreamer_jax.training.figures import (
    CONTEXT_COLOUR,
    OPEN_LOOP_COLOUR,
    open_loop_video,
    read_episode_curve,
    return_curve,
    running_mean,
    strip,
)


def test_running_mean():
    np.testing.assert_allclose(running_mean([3, 5, 1, 9], 2), [3, 4, 3, 5])
    np.testing.assert_allclose(running_mean([3, 5, 1], 10), [3, 4, 3])
    assert running_mean([], 3).size == 0


def test_episode_lines_are_picked_out(tmp_path):
    lines = [
        {"step": 1, "loss/reward": 2.0},
        {"step": 2, "episode/return": -5.5, "episode/frames_total": 400},
        {"step": 3, "episode/return": 7.0, "episode/frames_total": 900},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    frames, returns = read_episode_curve(path)
    assert frames.tolist() == [400, 900] and returns.tolist() == [-5.5, 7.0]


@pytest.mark.parametrize("count", [0, 1, 30])
def test_return_curve_is_a_png(tmp_path, count):
    path = tmp_path / "figures" / "curve.png"
    return_curve(path, np.arange(count) * 1000, np.arange(count) - 5.0, "CarRacing")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 300
        assert np.asarray(image.convert("L")).std() > 1


def test_strip_rows_and_columns():
    truth = np.zeros((3, 2, 4, 3), np.uint8)
    truth[1] = 200
    recon = np.full((3, 2, 4, 3), 50, np.uint8)
    image = strip(truth, recon)
    assert image.shape == (6, 12, 3) and image.dtype == np.uint8
    expected = [[0, 200, 0], [50, 50, 50], [50, 150, 50]]
    np.testing.assert_array_equal(image[::2, ::4, 0], expected)
    np.testing.assert_array_equal(image[1::2, 3::4, 2], expected)


def test_strip_takes_floats_and_clips_them():
    truth = np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1).repeat(3, -1)
    recon = np.array([-0.3, 0.2], np.float32).reshape(2, 1, 1, 1).repeat(3, -1)
    np.testing.assert_array_equal(strip(truth, recon)[..., 0], [[0, 255], [0, 51], [0, 204]])


def test_open_loop_video_layout():
    truth = np.zeros((2, 3, 4, 5, 3), np.uint8)
    truth[1, 2] = 90
    prediction = np.full_like(truth, 30)
    video = open_loop_video(truth, prediction, context=2)
    # Tiles of 4 + 4 by 5 + 4 pixels, three rows of two.
    assert video.shape == (3, 24, 18, 3) and video.dtype == np.uint8
    centres = video[:, 4::8, 4::9, 0]
    np.testing.assert_array_equal(centres[0], [[0, 0], [30, 30], [30, 30]])
    np.testing.assert_array_equal(centres[2], [[0, 90], [30, 30], [30, 60]])
    for corner in ((0, 0), (1, 8), (8, 9), (23, 17)):
        assert [tuple(frame[corner]) for frame in video] == [
            CONTEXT_COLOUR,
            CONTEXT_COLOUR,
            OPEN_LOOP_COLOUR,
        ]


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="equal image shapes"):
        strip(np.zeros((2, 4, 4, 3)), np.zeros((3, 4, 4, 3)))
