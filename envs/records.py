"""What environments give: arrays with names, and the record of one step."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gymnasium import spaces


class Record(NamedTuple):
    """What the environments last gave; views on memory that the next `step` overwrites.

    An observation comes exactly once: the first of an episode with `is_first` (reward 0, frames 0),
    the last with `is_last`. `reward[e]` is what led to `observation[name][e]`.
    """

    observation: dict[str, np.ndarray]  # [E, ...], "image" uint8 [E, 96, 96, 3] for the races
    reward: np.ndarray  # float32 [E]
    is_first: np.ndarray  # bool [E]
    is_last: np.ndarray  # bool [E]: terminated or truncated
    is_terminal: np.ndarray  # bool [E]: terminated; a truncated episode has worth beyond its end
    frames: np.ndarray  # int32 [E], environment frames simulated for this record
    progress: np.ndarray  # float32 [E] in [0, 1]
    lap_finished: np.ndarray  # bool [E]
    given: np.ndarray  # bool [E]: this record is of the last `step`, not an older one

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Record":
        """`function` done to every array."""
        observation = {name: function(x) for name, x in self.observation.items()}
        return Record(observation, *map(function, self[1:]))

    def copy(self) -> "Record":
        """One that no `step` overwrites."""
        return self.map(np.array)

    def arrays(self) -> list[np.ndarray]:
        """All of them, the entries of the observation first."""
        return [*self.observation.values(), *self[1:]]


def entries(space: spaces.Space, players: tuple[int, ...] = ()) -> dict[str, spaces.Box]:
    """What an observation space holds by name, in the shapes and dtypes that records have.

    Entries of a Dict keep their names; a Box alone is called "image" or "vector". Pictures are
    uint8 of rank 3, not counting the axes of `players`; all else becomes float32.

    Raises:
        ValueError: neither a Box nor a Dict of Boxes.
    """
    if not isinstance(space, spaces.Dict):
        name = "image" if is_picture(need_box(space), players) else "vector"
        space = {name: space}
    return {name: _as_recorded(need_box(box), players) for name, box in space.items()}


def need_box(space: spaces.Space) -> spaces.Box:
    """The space. Raises ValueError unless it is a Box."""
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"make_env: space {space} is not a Box; wrap the environment in envs.adapters.Adapted."
        )
    return space


def is_picture(box: spaces.Box, players: tuple[int, ...] = ()) -> bool:
    """Whether it is uint8 [h, w, c], after the axes of `players`."""
    return box.dtype == np.uint8 and len(box.shape) - len(players) == 3


def _as_recorded(box: spaces.Box, players: tuple[int, ...]) -> spaces.Box:
    if is_picture(box, players) or box.dtype == np.float32:
        return box
    return spaces.Box(-np.inf, np.inf, box.shape, np.float32)
