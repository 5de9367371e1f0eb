"""Atomic, verified checkpoints of any tree of arrays, written by Orbax.

    <directory>/<step:08d>/arrays/         the leaves, numbered, as an Orbax checkpoint
    <directory>/<step:08d>/host.json       what lives on the host: counters, generator states
    <directory>/<step:08d>/manifest.json   tree structure, and size and SHA-256 of every file

A checkpoint is written under a temporary name and renamed when all of it is on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer_jax.errors import UserError
from dreamer_jax.training.disk import is_full, is_refused
from dreamer_jax.training.manifest import (
    DamagedError,
    describe,
    first_difference,
    is_key,
    read_manifest,
    seal,
    verify_files,
    write_manifest,
)
from dreamer_jax.training.run_folder import saved_steps, sync_folder

PyTree = Any

ARRAYS_NAME = "arrays"
HOST_ARRAYS_NAME = "arrays.npz"
HOST_NAME = "host.json"
_TEMPORARY = ".tmp-"  # unfinished, may be removed
_REPLACED = ".replaced-"  # whole, set aside while its successor takes the name
# Pieces this small are compressed and read by all cores at once.
_CHUNK_BYTES = 16_000_000


@dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore` found; `warnings` names the damaged checkpoints passed over."""

    step: int
    arrays: PyTree
    host: dict[str, Any]
    warnings: list[str]


def choose(steps: Sequence[int], number: int, every: int) -> list[int]:
    """The newest of `steps` and, up to `number` in all, the newest of the others, ascending.

    Of the others those that were due, every so many steps, come first: one that an interruption
    left between them, or before the first, must not stand in for one of them, or a stop would
    change a mean of weights.
    """
    if not steps:
        return []
    newest = max(steps)
    others = sorted(set(steps) - {newest}, key=lambda step: (step > 0 and step % every == 0, step))
    return sorted([*others[max(0, len(others) - number + 1) :], newest])


class Checkpointer:
    """Saves to and restores from `directory`, keeping `keep` checkpoints: see `choose`.

    One writer at a time: the run folder's lock sees to that.
    """

    def __init__(self, directory: Path, keep: int = 3, every: int = 1) -> None:
        """`directory` is made by the first save; `every` so many steps one is due. Raises
        ValueError when keep < 1."""
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self.directory = Path(directory).resolve()
        self.keep, self.every = keep, every
        self._damaged: set[int] = set()
        self._put_back_replaced()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending; damaged ones are included."""
        return saved_steps(self.directory)

    def newest(self) -> int:
        """Step of the newest whole checkpoint, 0 where there is none at all. Raises UserError when
        none is whole."""
        return self._newest_whole(None)[0] if self.steps() else 0

    def save(self, step: int, arrays: PyTree, host: dict[str, Any]) -> None:
        """Write a checkpoint; one of the same step is replaced.

        arrays: any tree of arrays, typed PRNG keys and scalars. host: JSON values, in which NumPy
        scalars and arrays become numbers and lists. Raises UserError when the disk is full or
        not writable; the earlier checkpoints are then as they were.
        """
        temporary = self.directory / f"{_TEMPORARY}{step:08d}-{os.getpid()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            temporary.mkdir()
            _write(temporary, step, arrays, host)
            self._publish(temporary, step)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if message := self._disk_message(error, arrays):
                raise UserError(message) from error
            raise
        self._prune(step)

    def restore(
        self,
        template: PyTree | Callable[[dict[str, Any]], PyTree],
        step: int | None = None,
        part: str | None = None,
    ) -> Restored:
        """Read the newest whole checkpoint, or the one of `step`.

        template: a tree of the same structure whose leaves are arrays or `jax.ShapeDtypeStruct`;
        it gives shapes, dtypes and shardings (default device where none is named). Or what makes
        such a tree of the checkpoint's host values, where these decide on shapes. NumPy leaves
        come back as NumPy. part: of a template that is a dictionary, the entry to read and return
        (all of it is compared). Raises UserError when there is none, none is whole, or the newest
        whole one is of another project or structure.
        """
        found, manifest, warnings = self._newest_whole(step)
        folder = self._folder(found)
        host = _read_host(folder)
        if callable(template):
            template = template(host)
        if difference := first_difference(manifest["leaves"], describe(template)):
            raise UserError(
                f"checkpoint {folder} does not fit these settings: {difference}; use the "
                "settings of the run that wrote it (its config.json), or start a new run with "
                "another --out"
            )
        leaves, treedef = jax.tree_util.tree_flatten(template)
        numbers = treedef.unflatten(range(len(leaves)))
        wanted, numbers = (tree if part is None else tree[part] for tree in (template, numbers))
        arrays = _read_tree(folder, wanted, numbers)
        return Restored(found, arrays, host, warnings)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def _newest_whole(self, step: int | None) -> tuple[int, dict[str, Any], list[str]]:
        steps = self.steps()
        wanted = steps if step is None else [s for s in steps if s == step]
        if not wanted:
            which = "checkpoint" if step is None else f"checkpoint of step {step}"
            present = f" (present: {', '.join(map(str, steps))})" if steps else ""
            raise UserError(
                f"no {which} in {self.directory}{present}; give the folder of a run that has "
                "saved one, or start a new run"
            )
        warnings: list[str] = []
        for candidate in reversed(wanted):
            folder = self._folder(candidate)
            try:
                manifest = read_manifest(folder)
                verify_files(folder, manifest)
                return candidate, manifest, warnings
            except DamagedError as error:
                self._damaged.add(candidate)
                warnings.append(f"checkpoint {folder} is damaged and was passed over: {error}")
            except OSError as error:  # it may be whole: not to be removed
                warnings.append(f"checkpoint {folder} could not be read, passed over: {error}")
        raise UserError(
            f"no whole checkpoint in {self.directory}: {'; '.join(warnings)}; copy the folder "
            "back from a backup, or start a new run with another --out"
        )

    def _publish(self, temporary: Path, step: int) -> None:
        target = self._folder(step)
        aside = self.directory / f"{_REPLACED}{target.name}"
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
        sync_folder(self.directory)
        self._damaged.discard(step)
        shutil.rmtree(aside, ignore_errors=True)

    def _put_back_replaced(self) -> None:
        """Undo a replacement that was cut off between its two renames."""
        for aside in self.directory.glob(f"{_REPLACED}*"):
            target = self.directory / aside.name.removeprefix(_REPLACED)
            if not target.exists():
                aside.rename(target)

    def _remove_leftovers(self) -> None:
        self._put_back_replaced()
        for prefix in (_TEMPORARY, _REPLACED):
            for leftover in self.directory.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _prune(self, step: int) -> None:
        # Later steps than the one just saved are never counted: it must not push itself out.
        whole = [s for s in self.steps() if s <= step and s not in self._damaged]
        kept = choose(whole, self.keep, self.every)
        for old in [*(s for s in whole if s not in kept), *self._damaged]:
            # Renamed first, so that a kill leaves no half of a checkpoint under its own name.
            doomed = self.directory / f"{_TEMPORARY}old-{old:08d}"
            if self._folder(old).exists():
                self._folder(old).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
        self._damaged.clear()

    def _disk_message(self, error: Exception, arrays: PyTree) -> str | None:
        """What to tell the user of a failure of the disk; None for any other error."""
        if is_full(error):
            need = sum(_byte_size(leaf) for leaf in jax.tree_util.tree_leaves(arrays)) / 1e6
            free = shutil.disk_usage(self.directory).free / 1e6
            return (
                f"the disk of {self.directory} is full: a checkpoint needs up to {need:,.0f} MB "
                f"and {free:,.0f} MB are free; the earlier checkpoints are intact. Free some "
                "space, keep fewer checkpoints or choose another disk with --out, then --resume"
            )
        if is_refused(error):
            return f"cannot write {self.directory} ({error}); choose a writable folder with --out"
        return None


def _write(folder: Path, step: int, arrays: PyTree, host: dict[str, Any]) -> None:
    text = json.dumps(host, default=_to_json)  # first: it fails before the long part
    leaves = [_plain(leaf) for leaf in jax.tree_util.tree_leaves(arrays)]
    # Orbax takes neither empty arrays nor empty trees; the template brings those back.
    items = {f"{i:05d}": leaf for i, leaf in enumerate(leaves) if leaf.size}
    if jax.process_count() > 1:  # Orbax would not save what lies on one of several hosts
        np.savez(folder / HOST_ARRAYS_NAME, **jax.device_get(items))
    elif items:
        pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), items)
        with _orbax() as checkpointer:
            checkpointer.save(
                folder / ARRAYS_NAME, args=ocp.args.PyTreeSave(items, save_args=pieces)
            )
    (folder / HOST_NAME).write_text(text, encoding="utf-8")
    write_manifest(folder, step, describe(arrays), seal(folder))


def _read_tree(folder: Path, template: PyTree, numbers: PyTree) -> PyTree:
    """The leaves stored under these numbers in the form (type, sharding) of the template's."""
    leaves, treedef = jax.tree_util.tree_flatten(template)
    names = [f"{number:05d}" for number in jax.tree_util.tree_leaves(numbers)]
    forms = [_form(leaf) for leaf in leaves]
    items = {name: form for name, form in zip(names, forms, strict=True) if form.size}
    stored: dict[str, Any] = {}
    if (path := folder / HOST_ARRAYS_NAME).exists():
        with np.load(path) as file:
            # A view, since NumPy writes bfloat16 as mere bytes.
            stored = {k: _placed(file[k].view(form.dtype), form) for k, form in items.items()}
    elif items:
        arguments = ocp.checkpoint_utils.construct_restore_args(items)
        with _orbax() as checkpointer:
            stored = checkpointer.restore(
                folder / ARRAYS_NAME,
                args=ocp.args.PyTreeRestore(items, restore_args=arguments, partial_restore=True),
            )
    return treedef.unflatten(
        _typed(stored.get(name), form, leaf)
        for name, form, leaf in zip(names, forms, leaves, strict=True)
    )


@contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    alone = {}
    if jax.process_count() > 1:  # else it would wait for the other hosts
        index = jax.process_index()
        own = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
        alone = {"multiprocessing_options": own}
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True, use_zarr3=False, use_compression=True, **alone
    )
    with ocp.Checkpointer(handler, **alone) as checkpointer:
        yield checkpointer


def _plain(leaf: Any) -> jax.Array | np.ndarray:
    """A leaf as Orbax takes it: raw key data for a typed key, an array for a scalar."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _form(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """How a template's leaf is to be read: on a device, or as NumPy."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(leaf)
    shape = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _typed(value: Any, form: jax.ShapeDtypeStruct | np.ndarray, leaf: Any) -> Any:
    if value is None:
        value = _placed(np.zeros(form.shape, form.dtype), form)
    if is_key(leaf):
        return jax.random.wrap_key_data(value, impl=_key_impl(leaf))
    # Python scalars in a tree come back as they were.
    return type(leaf)(value) if isinstance(leaf, bool | int | float | complex) else value


def _placed(value: np.ndarray, form: jax.ShapeDtypeStruct | np.ndarray) -> Any:
    if isinstance(form, jax.ShapeDtypeStruct):
        return jax.device_put(value, form.sharding)
    return value


def _key_impl(leaf: Any) -> Any:
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _byte_size(leaf: Any) -> int:
    form = _form(leaf)
    return int(np.prod(form.shape, dtype=np.int64)) * np.dtype(form.dtype).itemsize


def _read_host(folder: Path) -> dict[str, Any]:
    return json.loads((folder / HOST_NAME).read_text(encoding="utf-8"))


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"host values must be JSON values, got {type(value).__name__}")
