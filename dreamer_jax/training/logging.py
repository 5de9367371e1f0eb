"""Metrics of a run: TensorBoard events and one JSON line per report.

Non-finite values are written to metrics.jsonl as the strings "nan", "inf" and "-inf", because
JSON has no numbers for them; `read_metrics` turns them back into floats.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from dreamer_jax.training.run_folder import write_atomic

METRICS_NAME = "metrics.jsonl"
MP4_MIN_SIDE = 384  # pixels
FLUSH_SECONDS = 30


class RunLogger:
    """Writes a run's metrics into `directory`; a context manager.

    `resume_step` is the step of the checkpoint the run continues from: later lines of
    metrics.jsonl are removed, and TensorBoard drops later events.
    """

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        metrics = self.directory / METRICS_NAME
        if resume_step is not None and metrics.exists():
            _cut_after(metrics, resume_step)
        self._metrics = metrics.open("a", encoding="utf-8")
        self._events = EventFile(self.directory, None if resume_step is None else resume_step + 1)
        self._flushed = time.monotonic()

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write scalars under their names (`loss/reward`) and one flushed JSON line.

        Values are numbers or arrays of one element; ValueError on larger ones. Raises OSError as
        everything here does that writes.
        """
        values = {name: np.asarray(v, dtype=np.float64).item() for name, v in metrics.items()}
        for name, value in values.items():
            if math.isfinite(value):  # the JSON line keeps the others
                self._events.add(step, summary.scalar(name, value))
        line = {name: _to_json(value) for name, value in values.items()}
        self._metrics.write(json.dumps({"step": int(step)} | line) + "\n")
        self._metrics.flush()
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def histogram(self, step: int, name: str, values: Any) -> None:
        """Write the distribution of `values`, of any shape; non-finite ones are left out."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        if flat.size:
            self._events.add(step, summary.histogram(name, flat, bins="auto"))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write one image, uint8 [H, W, 3], as a PNG. Raises ValueError on another form."""
        image = _checked(image, ndim=3)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        self._add_encoded(step, name, image.shape, buffer.getvalue())

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Write a video, uint8 [T, H, W, 3], as an animated GIF. Raises ValueError as `image`."""
        frames = _checked(frames, ndim=4)
        self._add_encoded(step, name, frames.shape[1:], encode_gif(frames, fps))

    def _add_encoded(self, step: int, name: str, shape: tuple[int, ...], data: bytes) -> None:
        height, width, colours = shape
        picture = Summary.Image(
            height=height, width=width, colorspace=colours, encoded_image_string=data
        )
        self._events.add(step, Summary(value=[Summary.Value(tag=name, image=picture)]))

    def flush(self) -> None:
        """Bring everything so far to the disk, where TensorBoard sees it."""
        self._events.flush()
        os.fsync(self._metrics.fileno())  # each line is flushed when it is written
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the files; calling it again does nothing.

        What a full disk does not take is lost here without a word: `scalars` and `flush` say it.
        """
        for file in (self._metrics, self._events):
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventFile:
    """TensorBoard's events in a new file of `directory`.

    tensorboardX's own writer has a thread for it, which dies of a full disk while the caller waits
    for ever, and whose queue a flush leaves as it is.
    """

    def __init__(self, directory: Path, purge: int | None = None) -> None:
        """TensorBoard drops what earlier files say of step `purge` and later ones."""
        # The name tells the nanosecond, or a second writer would overwrite the first one's file.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = RecordWriter(str(directory / name))
        self._write(Event(file_version="brain.Event:2"))
        if purge is not None:
            self._write(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, summary: Summary) -> None:
        """Write one event."""
        self._write(Event(step=int(step), summary=summary))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())

    def flush(self) -> None:
        """Bring everything so far to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """An endless GIF of frames, uint8 [T, H, W, 3]; at most 50 frames a second.

    Frames equal to the one before lengthen it instead, so the timing is kept.
    """
    # GIF counts in 1/100 s, and browsers slow anything below 2 of them.
    hundredths = max(2, round(100 / fps))
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=10 * hundredths, loop=0)
    return buffer.getvalue()


def mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, uint8 [T, H, W, 3] or an iterable of [H, W, 3], as an H.264 mp4.

    The picture is enlarged by a whole factor (nearest neighbour) until its shorter side has 384
    pixels, and padded to even sides. Raises ValueError without frames, on another form or on
    frames of unequal sizes, OSError when ffmpeg fails.
    """
    pictures = (_enlarged(_checked(frame, ndim=3)) for frame in frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    command = _ffmpeg_command(path, first.shape[1], first.shape[0], fps)
    # Not imageio_ffmpeg.write_frames: it forks, which a process with JAX's threads must not.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as encoder:
        try:
            for picture in itertools.chain([first], pictures):
                if picture.shape != first.shape:
                    raise ValueError(f"frame of {picture.shape} in a video of {first.shape}")
                encoder.stdin.write(picture.tobytes())
        except BrokenPipeError:
            pass  # ffmpeg gave up; it says why below
        except BaseException:
            encoder.kill()
            raise
        _, report = encoder.communicate()
    if encoder.returncode:
        raise OSError(f"ffmpeg could not write {path}: {report.decode(errors='replace').strip()}")


def _ffmpeg_command(path: Path, width: int, height: int, fps: float) -> list[str]:
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps:g} -i -".split()
    # yuv420p is what every player shows, and needs the even sides.
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18"]
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    return [*program, *source, *target, str(Path(path).absolute())]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, non-finite values as floats; a torn last line is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [record for line in lines if (record := parse_line(line)) is not None]


def parse_line(line: str) -> dict[str, Any] | None:
    """A line of a metrics.jsonl, non-finite values as floats; None where it is torn."""
    record = _parsed(line)
    return record and {name: _from_json(value) for name, value in record.items()}


def cycles_done(folder: Path) -> int:
    """The last cycle that the run's metrics.jsonl knows of."""
    cycles = [line.get("train/cycle", 0) for line in read_metrics(folder / METRICS_NAME)]
    return int(max(cycles, default=0))


def _cut_after(path: Path, step: int) -> None:
    """Remove the lines after `step`, and lines that a killed process left unfinished."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = _parsed(line)
        if record is not None and record["step"] <= step:
            kept.append(line + "\n")
    write_atomic(path, "".join(kept))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _from_json(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _checked(image: Any, ndim: int) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != ndim or image.shape[-1] != 3 or not image.size:
        form = "[T, H, W, 3]" if ndim == 4 else "[H, W, 3]"
        raise ValueError(f"expected uint8 {form}, got {image.dtype} {list(image.shape)}")
    return image


def _enlarged(image: np.ndarray) -> np.ndarray:
    factor = max(1, math.ceil(MP4_MIN_SIDE / min(image.shape[:2])))
    image = image.repeat(factor, 0).repeat(factor, 1)
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
