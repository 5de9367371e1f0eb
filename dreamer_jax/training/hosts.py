"""A run over several hosts: each process trains its share of the seeds on its own devices.

Learners need nothing of each other, so nothing crosses between hosts; `jax.distributed` tells each
process which one it is, and is left again at once: it would end all processes some minutes after
the first has ended, whatever the others still have to do. Host i writes a run folder of its own,
DIR/host_i.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from dreamer_jax.errors import UserError
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.members import parse_seeds


def join(text: str) -> None:
    """Asks `jax.distributed` which process this is; before anything is computed.

    `auto` finds the others by what Slurm, Open MPI, Kubernetes or a TPU pod says of them, else
    `ADDRESS:PORT,COUNT,INDEX`, with the address of host 0.

    Raises:
      UserError: another form, or the others cannot be found.
    """
    options = {}
    if text != "auto":
        try:
            address, count, index = text.split(",")
            options = {"num_processes": int(count), "process_id": int(index)}
        except ValueError:
            raise UserError(
                f"--hosts={text} cannot be: write auto, or ADDRESS:PORT,COUNT,INDEX as "
                "10.0.0.1:1234,2,0"
            ) from None
        options["coordinator_address"] = address
    try:
        jax.distributed.initialize(**options)
        jax.local_devices()  # the backend keeps its index and the number of all
        jax.distributed.shutdown()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--hosts={text}: {error}") from error


def own_folder(path: Path) -> Path:
    """Of this host."""
    return path / f"host_{jax.process_index()}" if jax.process_count() > 1 else path


def own_share(config: RunConfig) -> RunConfig:
    """The settings of this host: its seeds, every swept value with each, and its folder.

    Cars of one race stay together.

    Raises:
      UserError: fewer groups of seeds than hosts, or no folder named.
    """
    hosts = jax.process_count()
    if hosts == 1:
        return config
    if config.out is None or config.seeds is None:
        raise UserError("several hosts: name the folder with --out and the seeds with --seeds")
    seeds = np.array(parse_seeds(config.seeds)).reshape(-1, config.env.cars)
    if len(seeds) < hosts:
        raise UserError(
            f"--seeds={config.seeds} cannot be shared by {hosts} hosts: name at least "
            f"{hosts * config.env.cars}, or start fewer processes"
        )
    own = np.array_split(seeds, hosts)[jax.process_index()].ravel()
    folder = own_folder(Path(config.out))
    return dataclasses.replace(config, seeds=",".join(map(str, own)), out=str(folder))
