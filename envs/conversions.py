"""How spaces of all kinds become pictures, vectors and actions in [-1, 1]."""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from PIL import Image

MOST_CHANNELS = 16  # of a picture whose first axis they are
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

    uint8 Boxes of rank 2 or 3 are pictures, uint8 [h, w, c], resized to [size, size, c] unless size
    is 0; with at most MOST_CHANNELS rows and more columns they are taken as [c, h, w]. Other Boxes
    are flattened, Discrete and MultiDiscrete become one-hot vectors (side by side), MultiBinary a
    vector of 0 and 1; all float32. What is not nested is "image" or "vector".

    Raises:
        ValueError: another kind of space, or two entries of one name.
    """
    parts: dict[str, Part] = {}
    for path, leaf in _leaves(space, ()):
        picture = isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8 and len(leaf.shape) > 1
        picture = picture and len(leaf.shape) < 4
        name = "_".join(path) or ("image" if picture else "vector")
        box, make = _picture(leaf, size) if picture else _vector(leaf, name)
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


def _picture(box: spaces.Box, size: int) -> Part:
    shape, make = box.shape, partial(picture, size=size)
    if len(shape) == 3 and shape[0] <= MOST_CHANNELS < shape[2]:
        shape, make = (*shape[1:], shape[0]), partial(_channels_first, size=size)
    height, width, *channels = shape
    shape = (size or height, size or width, *(channels or [1]))
    return Part(spaces.Box(0, 255, shape, np.uint8), make)


def _channels_first(image: np.ndarray, size: int) -> np.ndarray:
    return picture(np.moveaxis(np.asarray(image), 0, -1), size)


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
    shape = (spaces.flatdim(space),)
    take = partial(_flat, space)
    return Part(spaces.Box(-np.inf, np.inf, shape, np.float32), take)


def _flat(space: spaces.Space, value: Any) -> np.ndarray:
    if isinstance(space, spaces.Box):  # not checked against the space's own dtype
        return np.asarray(value, np.float32).reshape(-1)
    return np.asarray(spaces.flatten(space, value), np.float32)


def action_map(space: spaces.Space) -> Actions:
    """How agents act in an action space.

    Discrete: the index of the largest entry. Box of floats, flattened: [-1, 1], clipped to it, is
    stretched to the bounds of each entry where they are finite; an entry without finite bounds is
    passed as it is.

    Raises:
        ValueError: another kind of space.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return Actions(int(space.n), True, lambda action: start + int(np.argmax(action)))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return Actions(int(np.prod(space.shape)), False, partial(_stretch, space))
    raise ValueError(
        f"action space: {space} is neither Discrete nor a Box of floats; wrap the environment in a "
        "gymnasium.ActionWrapper that shows one of these."
    )


def _stretch(space: spaces.Box, action: np.ndarray) -> np.ndarray:
    action = np.asarray(action, np.float64).reshape(space.shape)
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = (np.where(bounded, x, 0.0).astype(np.float64) for x in (space.low, space.high))
    inside = low + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (high - low)
    made = np.where(bounded, inside, action).astype(space.dtype)
    return np.clip(made, space.low, space.high)  # rounding may have led beyond
