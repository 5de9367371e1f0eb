"""How spaces of all kinds become pictures, vectors and actions in [-1, 1]."""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from PIL import Image

MOST_CHANNELS = 16  # of a picture whose first axis they are; also frames of a stack
CHANNELS = (1, 3, 4)  # of a picture that is no single uint8 one
LEAST_SIDE = 8  # of such a picture, in pixels
LEAST_GREY_SIDE = 32  # of one without an axis of channels: smaller ones are tables of numbers
SMALL_SIDE = 16  # in pixels; what is enlarged from less is often no picture
MOST_ONE_HOT = 4096  # numbers that a grid may become as one-hot vectors
MOST_NUMBERS = 10_000  # of a vector that is plausible
MOST_CHOICES = 1024  # joint ones of an action of several choices
UNBOUNDED = 1e6  # bounds of actions beyond are none
SPAN = 2.0  # of actions with one bound
VECTORS = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)


class Part(NamedTuple):
    """One entry of an observation: its space and how to make it of the environment's own."""

    box: spaces.Box
    take: Callable[[Any], np.ndarray]


class Actions(NamedTuple):
    """How an agent's vector float32 [size] in [-1, 1] becomes an action of the environment."""

    size: int
    discrete: bool  # the largest entry is the choice
    convert: Callable[[np.ndarray], Any]


def observation_parts(space: spaces.Space, size: int = 0) -> dict[str, Part]:
    """The entries of an observation space by name; the names of nested ones are joined by "_".

    Pictures, uint8 [h, w, c], are resized to [size, size, c] unless size is 0. They are
      - uint8 Boxes of rank 2 or 3 with a high of 255, taken as [c, h, w] where the first number is
        in CHANNELS and the last is not, or the last is above MOST_CHANNELS and the first is not, or
        is the smallest;
      - Boxes of floats with the bounds 0 and 1, or of any numbers with 0 and 255, of shape
        [h, w, c] or [c, h, w] with c in CHANNELS and sides of at least LEAST_SIDE, or [h, w] with
        sides of at least LEAST_GREY_SIDE;
      - stacks of at most MOST_CHANNELS such frames, their channels one after the other.
    All else is float32 [n]. uint8 Boxes of rank 2 and more with a high below 255 are grids: each of
    their numbers becomes a one-hot vector of high + 1, or is divided by high if that is 1 or the
    vectors would have more than MOST_ONE_HOT entries in all. Other Boxes are flattened, Discrete
    and MultiDiscrete become one-hot vectors (side by side), MultiBinary a vector of 0 and 1. What
    is not nested is "image" or "vector". It warns of numbers beyond MOST_NUMBERS, and of tiny
    pictures that are enlarged.

    Raises:
        ValueError: another kind of space, two entries of one name, or a Discrete or MultiDiscrete
            of more than MOST_NUMBERS.
    """
    parts: dict[str, Part] = {}
    for path, leaf in _leaves(space, ()):
        axes = _picture_axes(leaf)
        name = "_".join(path) or ("image" if axes else "vector")
        box, make = _picture(leaf, axes, size, name) if axes else _vector(leaf, name)
        if name in parts:
            raise ValueError(f"observation space: two entries are called {name!r}; rename one.")
        if box.shape != (0,):
            parts[name] = Part(box, partial(_take, _keys(space, path), make))
    return parts


def _leaves(space: spaces.Space, path: tuple[str, ...]) -> Iterator[tuple]:
    inner = _inner(space)
    if inner is None:
        yield path, space
    else:
        for key, value in inner.items():
            yield from _leaves(value, (*path, str(key)))


def _inner(space: spaces.Space) -> dict[Any, spaces.Space] | None:
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    return dict(enumerate(space)) if isinstance(space, spaces.Tuple) else None


def _keys(space: spaces.Space, path: tuple[str, ...]) -> tuple:
    """The keys that the names of `path` stand for."""
    keys = []
    for name in path:
        inner = _inner(space)
        keys.append(next(key for key in inner if str(key) == name))
        space = inner[keys[-1]]
    return tuple(keys)


def _take(keys: tuple, make: Callable, observation: Any) -> np.ndarray:
    return make(reduce(getitem, keys, observation))


def _picture_axes(space: spaces.Space) -> tuple[int, ...]:
    """Its axes as height, width and those that become channels; (): it is no picture."""
    if not isinstance(space, spaces.Box):
        return ()
    rank = len(space.shape)
    if space.dtype != np.uint8 or rank not in (2, 3):
        return _usual_axes(space.shape) if _white(space) else ()
    if space.high.max(initial=0) < 255:
        return ()
    return (1, 2, 0) if rank == 3 and _channels_first(*space.shape) else tuple(range(rank))


def _channels_first(first: int, second: int, last: int) -> bool:
    if last > MOST_CHANNELS:
        return first <= MOST_CHANNELS or first < min(second, last)
    return first in CHANNELS and last not in CHANNELS


def _usual_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Likewise by the shape alone, of a frame or a stack of frames."""
    if len(shape) == 2 and min(shape) >= LEAST_GREY_SIDE:
        return (0, 1)
    orders = {3: ((0, 1, 2), (1, 2, 0)), 4: ((1, 2, 0, 3), (2, 3, 0, 1))}
    for axes in orders.get(len(shape), ()):
        height, width, *frames, channels = (shape[axis] for axis in axes)
        fits = min(height, width) >= LEAST_SIDE and channels in CHANNELS
        if fits and max(frames, default=1) <= MOST_CHANNELS:
            return axes
    return ()


def _white(box: spaces.Box) -> int:
    """The largest number, 255 or of floats 1, where 0 is black; 0: of other numbers."""
    if np.any(box.low != 0):
        return 0
    whites = (255, 1) if np.issubdtype(box.dtype, np.floating) else (255,)
    return next((white for white in whites if np.all(box.high == white)), 0)


def _picture(box: spaces.Box, axes: tuple[int, ...], size: int, name: str) -> Part:
    height, width, *others = (box.shape[axis] for axis in axes)
    white = 255 if box.dtype == np.uint8 else _white(box)
    if white == 255 and max(height, width) <= SMALL_SIDE < size:
        warnings.warn(
            f"observation space: {name!r}, {height}x{width}, is enlarged to {size}x{size} as a "
            "picture; if its numbers are no brightness but kinds of things, let the Box's high be "
            "the largest of them",
            stacklevel=3,
        )
    shape = (size or height, size or width, math.prod(others))
    make = partial(_drawn, axes=axes, white=white, size=size)
    return Part(spaces.Box(0, 255, shape, np.uint8), make)


def _drawn(values: Any, axes: tuple[int, ...], white: int, size: int) -> np.ndarray:
    image = np.transpose(np.asarray(values), axes)
    image = image.reshape(*image.shape[:2], -1)
    if white != 255 or image.dtype != np.uint8:
        image = np.rint(np.clip(image.astype(np.float32) / white, 0.0, 1.0) * 255)
    return picture(image, size)


def picture(image: np.ndarray, size: int = 0) -> np.ndarray:
    """uint8 [h, w, c] or [h, w] -> uint8 [size, size, c] or [size, size, 1]; size 0: as it is."""
    image = np.asarray(image, np.uint8)
    image = image[..., None] if image.ndim == 2 else image
    if size == 0 or image.shape[:2] == (size, size):
        return image
    channels = [Image.fromarray(np.ascontiguousarray(x)) for x in np.moveaxis(image, -1, 0)]
    resized = [np.asarray(x.resize((size, size), Image.Resampling.BILINEAR)) for x in channels]
    return np.stack(resized, axis=-1)


def _vector(space: spaces.Space, name: str) -> Part:
    if not isinstance(space, VECTORS):
        raise ValueError(
            f"observation space: {name!r} is {space}, of which no array can be made; remove or "
            "replace it with a gymnasium.ObservationWrapper."
        )
    length, take = _grid(space) if _is_grid(space) else _plain(space)
    if length > MOST_NUMBERS:
        _object_to(space, name, length)
    return Part(spaces.Box(-np.inf, np.inf, (length,), np.float32), take)


def _object_to(space: spaces.Space, name: str, length: int) -> None:
    """Refuses what is one-hot; warns of numbers, which may be meant."""
    text = f"observation space: {name!r}, {space}, makes a vector of {length} numbers"
    remedy = "make it smaller, or a picture, with a gymnasium.ObservationWrapper"
    if not isinstance(space, spaces.Box | spaces.MultiBinary):
        raise ValueError(f"{text}, of which {MOST_NUMBERS} are the most; {remedy}.")
    warnings.warn(f"{text}, each seen for itself; {remedy}", stacklevel=4)


def _plain(space: spaces.Space) -> tuple[int, Callable]:
    return spaces.flatdim(space), partial(_flat, space)


def _is_grid(space: spaces.Space) -> bool:
    small = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
    return small and 0 < space.high.max(initial=0) < 255


def _grid(box: spaces.Box) -> tuple[int, Callable]:
    """The length of the vector that small whole numbers become, and how they do."""
    highest = box.high.reshape(-1).astype(np.int64)
    length = int(np.sum(highest + 1))
    if highest.max() == 1 or length > MOST_ONE_HOT:
        return len(highest), partial(_shares, np.maximum(highest, 1))
    return length, partial(_one_hot, highest, np.cumsum(highest + 1) - highest - 1, length)


def _shares(highest: np.ndarray, value: Any) -> np.ndarray:
    return (np.asarray(value).reshape(-1) / highest).astype(np.float32)


def _one_hot(highest: np.ndarray, first: np.ndarray, length: int, value: Any) -> np.ndarray:
    made = np.zeros(length, np.float32)
    made[first + np.minimum(np.asarray(value).reshape(-1), highest)] = 1.0
    return made


def _flat(space: spaces.Space, value: Any) -> np.ndarray:
    if isinstance(space, spaces.Box):  # not checked against the space's own dtype
        return np.asarray(value, np.float32).reshape(-1)
    return np.asarray(spaces.flatten(space, value), np.float32)


def action_map(space: spaces.Space) -> Actions:
    """How agents act in an action space.

    Discrete: the index of the largest entry. MultiDiscrete and MultiBinary of at most MOST_CHOICES
    joint choices: likewise, counted with the last of them the quickest. Box of floats, flattened:
    [-1, 1], clipped to it, is stretched to the bounds of each entry; where only one is finite the
    other lies SPAN from it, an entry without any is passed as it is. A low of -UNBOUNDED or less
    and a high of UNBOUNDED or more are not finite here.

    Raises:
        ValueError: another kind of space, or more choices.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return Actions(int(space.n), True, lambda action: start + int(np.argmax(action)))
    choices = _choices(space)
    if choices and math.prod(choices) <= MOST_CHOICES:
        return Actions(math.prod(choices), True, partial(_separate, space, choices))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        stretch = partial(_stretch, space, *_bounds(space))
        return Actions(int(np.prod(space.shape)), False, stretch)
    raise ValueError(
        f"action space: {space} is neither Discrete nor a Box of floats, nor has it at most "
        f"{MOST_CHOICES} joint choices; wrap the environment in a gymnasium.ActionWrapper that "
        "shows one of these."
    )


def _choices(space: spaces.Space) -> tuple[int, ...]:
    """How many there are for each entry; (): they cannot be counted."""
    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    return tuple(map(int, space.nvec.flat)) if isinstance(space, spaces.MultiDiscrete) else ()


def _separate(space: spaces.Space, choices: tuple[int, ...], action: np.ndarray) -> np.ndarray:
    chosen = np.array(np.unravel_index(int(np.argmax(action)), choices)).reshape(space.shape)
    return (chosen + getattr(space, "start", 0)).astype(space.dtype)


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where an entry has bounds, and what -1 and 1 mean there; float64 in the space's shape."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    has_low, has_high = low > -UNBOUNDED, high < UNBOUNDED
    bounded = has_low | has_high
    least, most = np.where(has_low, low, high - SPAN), np.where(has_high, high, low + SPAN)
    return bounded, np.where(bounded, least, 0.0), np.where(bounded, most, 0.0)


def _stretch(
    space: spaces.Box, bounded: np.ndarray, low: np.ndarray, high: np.ndarray, action: np.ndarray
) -> np.ndarray:
    action = np.asarray(action, np.float64).reshape(space.shape)
    inside = low + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)
    made = np.where(bounded, inside, action).astype(space.dtype)
    return np.clip(made, space.low, space.high)  # rounding may have led beyond
