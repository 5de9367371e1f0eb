"""What scripts say of their runs; without JAX, as environment workers import those scripts too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Stage(NamedTuple):
    """Settings that hold until the run has done `cycles`: options of car_racing.py, or of train.py
    where those of the first stage name --env."""

    cycles: int
    settings: str


class Task(NamedTuple):
    """What is learnt whole, and what the options of a run without each part are besides."""

    whole: Stage
    without: Mapping[str, str]
