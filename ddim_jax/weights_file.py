"""Weights of a diffusion model as one pickle-free .npz: half-precision arrays and the settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import config as settings
from ddim_jax import npz
from ddim_jax.config import DDIMConfig
from ddim_jax.unet import UNet

CONFIG_ENTRY = "config.json"
SHIPPED = Path(__file__).parent / "weights"  # <preset>.npz


class WeightsError(ValueError):
    """A weights file that cannot be used; the message names it and the remedy."""


def save_weights(path: Path, config: DDIMConfig, params: Any) -> None:
    """Write `params` in half precision and `config`, all of it or nothing."""
    leaves = {_name(where): np.asarray(leaf, np.float16) for where, leaf in _paths(params)}
    text = json.dumps(settings.to_dict(config))
    npz.write(path, **leaves, **{CONFIG_ENTRY: np.array(text)})


def as_saved(params: Any) -> Any:
    """The float32 weights that `save_weights` and `load_weights` make of `params`."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float16), jnp.float32), params)


def load_weights(path: Path) -> tuple[DDIMConfig, Any]:
    """Settings and float32 weights.

    Raises:
      WeightsError: missing, damaged or of another network than its settings say.
    """
    try:
        arrays = npz.read(path)
        config = settings.from_dict(json.loads(str(arrays.pop(CONFIG_ENTRY))))
        settings.check(config)
    except FileNotFoundError as error:
        raise WeightsError(f"no diffusion weights at {path}; train them, see --help") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is no weights file of this program ({error}); delete it and train the model "
            "with pretrain_ddim.py, or go on with --resume in its folder, which writes it anew"
        ) from error
    return config, fill(template(config), arrays, str(path))


def template(config: DDIMConfig) -> Any:
    """Shapes of the noise network's weights."""
    image = jnp.zeros((1, *config.image))
    return jax.eval_shape(
        UNet(config.unet).init, jax.random.key(0), image, jnp.zeros((1,), jnp.int32)
    )


def fill(shapes: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """A tree like `shapes` with the float32 arrays of these names; WeightsError on a difference."""
    wanted = {_name(path): leaf for path, leaf in _paths(shapes)}
    if odd := sorted(set(wanted) ^ set(arrays)):
        raise WeightsError(f"{where} is of another network: {odd[0]} is in one of them only")
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise WeightsError(
                f"{where} is of another network: {name} has shape {arrays[name].shape}, "
                f"not {leaf.shape}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(arrays[_name(path)], jnp.float32), shapes
    )


def digest(params: Any) -> str:
    """A fingerprint of weights, the same on every machine."""
    total = hashlib.sha256()
    for path, leaf in _paths(params):
        total.update(_name(path).encode())
        total.update(np.asarray(leaf, np.float32).tobytes())
    return total.hexdigest()[:16]


def _paths(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _name(path: Any) -> str:
    return "/".join(str(entry.key) for entry in path)
