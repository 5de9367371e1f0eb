"""What the logger writes, read back with TensorBoard's own reader."""

import io
import json
import math
import os
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer_jax.training import aggregate
from dreamer_jax.training.collect import Episode
from dreamer_jax.training.display import Display
from dreamer_jax.training.evaluate import Played
from dreamer_jax.training.logging import RunLogger, encode_gif, mp4, read_metrics
from dreamer_jax.training.members import Member


def load_events(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def make_frames(count: int, height: int = 6, width: int = 8) -> np.ndarray:
    """Frame t is grey of brightness 20 t."""
    levels = np.arange(count, dtype=np.uint8) * 20
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def open_image(events, name):
    (found,) = events.Images(name)
    return found, Image.open(io.BytesIO(found.encoded_image_string))


def test_scalars_reach_both_files(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.scalars(10, {"loss/reward": 0.5, "episode/return": np.float32(-2)})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1  # before close
        logger.scalars(20, {"loss/reward": np.ones(1)})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss/reward": 0.5, "episode/return": -2.0},
        {"step": 20, "loss/reward": 1.0},
    ]
    events = load_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/reward")] == [(10, 0.5), (20, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("episode/return")] == [(10, -2.0)]


def test_non_finite_values_stay_valid_json(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == -math.inf


def test_resume_removes_what_came_after(tmp_path):
    with RunLogger(tmp_path) as logger:
        for step in (1, 2, 3):
            logger.scalars(step, {"x": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "x"')  # torn by a kill
    with RunLogger(tmp_path, resume_step=2) as logger:
        logger.scalars(3, {"x": 30})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["x"] for line in lines] == [1.0, 2.0, 30.0]
    scalars = load_events(tmp_path).Scalars("x")
    assert [(e.step, e.value) for e in scalars] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_histogram_counts_finite_values(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.histogram(4, "h", [[1.0, 2.0], [3.0, math.nan]])
        logger.histogram(4, "none", [math.nan])
    events = load_events(tmp_path)
    (found,) = events.Histograms("h")
    value = found.histogram_value
    assert (found.step, value.num, value.min, value.max, value.sum) == (4, 3, 1, 3, 6)
    assert events.Tags()["histograms"] == ["h"]


def test_image_decodes_to_the_same_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with RunLogger(tmp_path) as logger:
        logger.image(3, "eval/frame", image)
    found, decoded = open_image(load_events(tmp_path), "eval/frame")
    assert (found.step, found.height, found.width, decoded.format) == (3, 5, 7, "PNG")
    np.testing.assert_array_equal(np.asarray(decoded), image)


def test_video_is_an_animated_gif(tmp_path):
    frames = make_frames(9)
    with RunLogger(tmp_path) as logger:
        logger.video(5, "eval/video", frames, fps=25)
    found, decoded = open_image(load_events(tmp_path), "eval/video")
    assert (found.step, found.height, found.width) == (5, 6, 8)
    assert (decoded.format, decoded.n_frames, decoded.info["loop"]) == ("GIF", 9, 0)
    for index in range(9):
        decoded.seek(index)
        assert decoded.info["duration"] == 40  # ms
        np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), frames[index])


def test_gif_keeps_the_time_of_equal_frames():
    decoded = Image.open(io.BytesIO(encode_gif(make_frames(3)[[0, 0, 1, 2, 2]], fps=50)))
    durations = []
    for index in range(decoded.n_frames):
        decoded.seek(index)
        durations.append(decoded.info["duration"])
    assert sum(durations) == 5 * 20


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 4), np.uint8), ((4, 4, 1), np.uint8), ((4, 4, 3), np.float32)]
)
def test_other_forms_are_refused(tmp_path, shape, dtype):
    with RunLogger(tmp_path) as logger:
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            logger.image(0, "x", np.zeros(shape, dtype))
        with pytest.raises(ValueError, match=r"expected uint8 \[T, H, W, 3\]"):
            logger.video(0, "x", np.zeros((2, *shape), dtype), fps=10)


def decode(path) -> tuple[np.ndarray, str]:
    """The bytes of all frames, and what ffmpeg says of the file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8), done.stderr.decode()


# 64 x 96 is enlarged 6 times; 385 x 401 is only padded to even sides.
@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 96, (576, 384)), (385, 401, (402, 386))]
)
def test_mp4_is_large_enough_to_watch(tmp_path, height, width, size):
    path = tmp_path / "videos" / "a.mp4"
    mp4(path, make_frames(6, height, width), fps=20)
    frames, report = decode(path)
    assert f"{size[0]}x{size[1]}" in report and "20 fps" in report and "h264" in report
    frames = frames.reshape(-1, size[0] * size[1] * 3)
    assert len(frames) == 6
    np.testing.assert_allclose([f.mean() for f in frames], np.arange(6) * 20, atol=3)


def test_mp4_needs_frames(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        mp4(tmp_path / "a.mp4", [], fps=10)


def test_mp4_refuses_frames_of_unequal_sizes(tmp_path):
    with pytest.raises(ValueError, match="frame of"):
        mp4(tmp_path / "a.mp4", [make_frames(1)[0], make_frames(1, 9)[0]], fps=10)


def test_mp4_says_why_ffmpeg_failed(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(OSError, match="could not write"):
        mp4(tmp_path / "a.mp4", make_frames(2), fps=10)


def test_closing_twice(tmp_path):
    logger = RunLogger(tmp_path)
    logger.close()
    logger.close()


def test_a_flush_shows_everything(tmp_path):
    with RunLogger(tmp_path) as logger:
        for step in range(3):
            logger.scalars(step, {f"x{i}": i for i in range(30)})
        logger.flush()
        events = load_events(tmp_path)
    assert [len(events.Scalars(f"x{i}")) for i in range(30)] == [3] * 30


@pytest.mark.parametrize("file", ["metrics", "events"])
def test_a_full_disk_is_an_error_and_no_standstill(tmp_path, file):
    logger = RunLogger(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    own = logger._metrics if file == "metrics" else logger._events._file._writer
    own.flush()
    os.dup2(full, own.fileno())
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        for step in range(50):
            logger.scalars(step, {f"x{i}": i for i in range(30)})
        logger.flush()
    logger.close()
    assert own.closed


def test_a_stopped_learner_is_no_part_of_evaluations(tmp_path):
    members = [Member(seed, ()) for seed in (0, 1, 2)]
    display = Display(tmp_path, members, 3, quiet=True)
    played = Played(
        returns=np.array([[800.0, 820.0], [20.0, 22.0], [700.0, 700.0]]),
        laps=np.zeros((3, 2), bool),
        progress=np.ones((3, 2)),
        frames=np.full((3, 2), 900),
        video=np.zeros((0, 8, 8, 3), np.uint8),
    )
    display.evaluation(np.full(3, 50), played, np.array([True, False, True]))
    display.evaluation(np.full(3, 90), played, np.array([True, False, False]))
    display.close()
    assert not (tmp_path / "seed_1" / "metrics.jsonl").read_text()
    both, one = read_metrics(tmp_path / "aggregate" / "metrics.jsonl")
    assert both["eval/return_iqm"] == 755 and both["eval/return_iqm_high"] == 810
    assert one == {"step": 90, "eval/return_iqm": 810}


def test_one_swept_value_is_a_setting_too(tmp_path):
    """Evaluation writes beside the setting's runs, where a comparison looks for them."""
    display = Display(tmp_path, [Member(4, (("agent.lr", 1.0),))], 3, quiet=True)
    display.close()
    assert display.folders == [tmp_path / "lr=1" / "seed_4"]
    alone = Display(tmp_path / "alone", [Member(4, ())], 3, quiet=True)
    alone.close()
    assert alone.folders == [tmp_path / "alone"]


def test_each_setting_goes_on_from_its_own_frames(tmp_path):
    """The first has done 1000 frames at the checkpoint, the second 1400."""
    members = [Member(0, (("agent.lr", 1.0),)), Member(0, (("agent.lr", 2.0),))]
    for member, steps in zip(members, ((900, 1000, 1150), (1300, 1400, 1600)), strict=True):
        with RunLogger(tmp_path / member.setting / "aggregate") as logger:
            for step in steps:
                logger.scalars(step, {"x": step})
    Display(tmp_path, members, 3, 1, [1000, 1400], quiet=True).close()
    kept = [
        [r["step"] for r in read_metrics(tmp_path / m.setting / "aggregate" / "metrics.jsonl")]
        for m in members
    ]
    assert kept == [[900, 1000], [1300, 1400]]


@pytest.mark.parametrize("task", ["CarRacing-v3", "Pendulum-v1"])
def test_a_stopped_learner_does_not_cut_the_figure_of_the_others(
    task, tmp_path, monkeypatch, capsys
):
    """Nor does a setting all of whose learners stopped, or had no episode yet."""
    drawn = []
    monkeypatch.setattr(aggregate, "comparison_figure", lambda *words: drawn.append(words))
    members = [Member(s, (("agent.lr", x),)) for x in (1.0, 2.0) for s in (0, 1)]
    display = Display(tmp_path, members, 3, quiet=True)
    for number in range(1, 13):
        alive = (0,) if number > 2 else (0, 1, 2)
        display.episodes([Episode(s, s, 5, 10, 10 * number, 0.5, False) for s in alive])
    display.close()
    parts = display.aggregates
    aggregate.draw_all(tmp_path, parts, "x", task, np.array([True, False, False, True]))
    (_, comparison, name), *_ = drawn
    assert name == task and list(comparison.groups) == ["lr=1"]
    assert [run.seed for run in comparison.groups["lr=1"].runs] == [0]
    assert int(comparison.grid[-1]) == 120
    assert comparison.threshold == (500.0 if task == "CarRacing-v3" else math.inf)
    aggregate.draw_all(tmp_path, parts, "x", task, np.zeros(4, bool))
    assert len(drawn) == 1 and "none of them has finished" in capsys.readouterr().out


def play(display, number, first=0):
    """So many episodes of two learners, of other returns each, then the line over both."""
    for n in range(first, first + number):
        rewards = ((n - 7) ** 2, 500 - 30 * n)
        display.episodes(
            [Episode(s, r, 25, 100, 100 * n, 0.5, False) for s, r in enumerate(rewards)]
        )
    last = 100 * (first + number - 1)
    display.aggregates[0].cycle(np.full(2, last), np.ones(2, bool))


def test_the_mean_over_seeds_goes_on_over_a_stop(tmp_path):
    """Over the last ten episodes, of before the checkpoint too; not of those it knew nothing of."""
    members = [Member(seed, ()) for seed in (3, 5)]
    whole = Display(tmp_path / "whole", members, 3, quiet=True)
    play(whole, 12)
    play(whole, 3, first=12)
    whole.close()
    killed = Display(tmp_path / "run", members, 3, quiet=True)
    play(killed, 12)
    play(killed, 2, first=100)
    killed.close()
    resumed = Display(tmp_path / "run", members, 3, 1, [1100, 1100], quiet=True)
    play(resumed, 3, first=12)
    resumed.close()
    want, got = (
        read_metrics(tmp_path / name / "aggregate" / "metrics.jsonl") for name in ("whole", "run")
    )
    last = np.arange(5, 15)
    means = [np.mean((last - 7) ** 2), np.mean(500 - 30 * last)]
    assert [line["step"] for line in got] == [1100, 1400]
    assert got[-1]["episode/return_iqm"] == pytest.approx(np.mean(means))
    assert got == want
