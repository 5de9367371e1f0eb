"""The manifest of a checkpoint: what it holds, and how to see that a file of it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.run_folder import sync_folder

MANIFEST_NAME = "manifest.json"
PROJECT = "dreamer-jax"
FORMAT = 1
RENAMED = {"replay/data/image": "replay/data/obs/image"}  # since observations have names

Leaves = list[list[Any]]  # [path, shape, dtype] of every leaf, in the tree's order


class DamagedError(Exception):
    """A file of a checkpoint is missing or not what was written."""


def is_key(leaf: Any) -> bool:
    """Whether a leaf is (the shape of) typed PRNG keys, as `jax.random.key` makes them."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def describe(tree: Any) -> Leaves:
    """[path, shape, dtype] of every leaf."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaves.append([name, list(leaf.shape), str(leaf.dtype)])
    return leaves


def first_difference(stored: Leaves, wanted: Leaves) -> str | None:
    """Where two descriptions first differ, with the settings likely behind it; None if equal."""
    stored = [[RENAMED.get(name, name), *rest] for name, *rest in stored]
    stored_names, wanted_names = {leaf[0] for leaf in stored}, {leaf[0] for leaf in wanted}
    # A missing leaf shifts all that follow, so names come before shapes.
    for name in [leaf[0] for leaf in wanted if leaf[0] not in stored_names]:
        return f"it has no '{name}' (another algorithm or version, or an option switched on since)"
    for name in [leaf[0] for leaf in stored if leaf[0] not in wanted_names]:
        return f"its '{name}' is not wanted here (another algorithm, or an option switched off)"
    for (name, had, was), (other, shape, dtype) in zip(stored, wanted, strict=True):
        if name != other:
            return f"it has '{name}' in the place of '{other}' (another version of this project)"
        if was != dtype:
            return f"'{name}' is {was}, wanted {dtype} (a precision or number-type setting)"
        if had != shape:
            return f"'{name}' has shape {had}, wanted {shape} ({_likely(had, shape)})"
    return None


def _likely(had: list[int], shape: list[int]) -> str:
    if len(had) == len(shape) and had[1:] == shape[1:]:
        return "the number of seeds or environments, the replay capacity, or a layer size"
    return "a network size, the task's observations or actions, or the number of seeds"


def seal(folder: Path) -> dict[str, list[Any]]:
    """Force every file in `folder` to the disk: {relative path: [bytes, SHA-256]}."""
    files: dict[str, list[Any]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
        sync_folder(Path(parent))
    return files


def write_manifest(folder: Path, step: int, leaves: Leaves, files: Mapping[str, list[Any]]) -> None:
    """Write the manifest, with a checksum of itself, and force it to the disk."""
    body = {
        "project": PROJECT,
        "format": FORMAT,
        "step": int(step),
        "leaves": leaves,
        "files": dict(files),
    }
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        json.dump(body | {"checksum": _checksum(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises DamagedError when it is missing or altered, UserError when it is foreign."""
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
    except FileNotFoundError as error:
        raise DamagedError(f"{MANIFEST_NAME} is missing") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{MANIFEST_NAME} is unreadable") from error
    if checksum != _checksum(manifest):
        raise DamagedError(f"{MANIFEST_NAME} was altered (checksum differs)")
    if manifest["project"] != PROJECT:
        raise UserError(
            f"checkpoint {folder} was written by {manifest['project']}, not by {PROJECT}; "
            "give the folder of a run of this project"
        )
    if manifest["format"] != FORMAT:
        raise UserError(
            f"checkpoint {folder} has format {manifest['format']}, this version reads {FORMAT}; "
            f"use the version of {PROJECT} that wrote it, or start a new run with another --out"
        )
    return manifest


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises DamagedError naming the first file that is missing or differs."""
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != size:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise DamagedError(f"{name} was altered (checksum differs)")


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
