"""Imports only go down the list of rooms; who may use which library; no file grows too long."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (  # a module imports from its own room and from those after it
    "training",
    "agents",
    "alignment",
    "imagination",
    "actor_critic",
    "policies",
    "planners",
    "world_models",
    "replay",
    "nn",
    "ops",
    "types",
)
FREE = "errors"  # for everyone
FLAX_ROOMS = {"nn", "world_models"}
STRUCT_ROOMS = FLAX_ROOMS | {"types", "replay", "agents"}
NOT_IN_ENVS = {"jax", "jaxlib", "flax", "optax", "dreamer_jax", "ddim_jax"}
MOST_LINES = 400


def imports(source: str, package: str) -> Iterator[str]:
    """Full dotted names of everything a module imports, `from` names included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*up, node.module] if node.module else up)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """What the file `path` (relative to the repository) imports and must not."""
    parts = Path(path).with_suffix("").parts
    names = list(imports(source, ".".join(parts[:-1])))
    if parts[0] == "envs":
        return [f"{path}: {name}" for name in names if name.split(".")[0] in NOT_IN_ENVS]
    if parts[:2] == ("ddim_jax", "training"):  # the host side of both packages
        return [f"{path}: {name}" for name in names if name.split(".")[0] == "experiments"]
    if parts[0] == "ddim_jax":
        inside = [n for n in names if n.split(".")[0] == "dreamer_jax"]
        wrong = [n for n in inside if n.split(".")[1:2] != ["nn"]]
        wrong += [n for n in names if n.startswith(("envs.", "experiments.", "ddim_jax.training"))]
        return [f"{path}: {n}" for n in wrong]
    room = parts[1]
    return [f"{path}: {name}" for name in names if not allowed(room, name)]


def allowed(room: str, name: str) -> bool:
    package, *inner = name.split(".")
    if package == "dreamer_jax":
        if room in ("__init__", FREE) or not inner:
            return False
        return inner[0] == FREE or (inner[0] in ROOMS[ROOMS.index(room) :])
    if package == "flax":
        return room in FLAX_ROOMS or (room in STRUCT_ROOMS and inner[:1] == ["struct"])
    return package not in {"ddim_jax", "experiments"} and (package != "envs" or room == "training")


def test_no_agent_reaches_into_another():
    agents = ("dlc_v1", "dreamer_v1", "dreamer_v2", "dreamer_v3", "planet")
    for path in files("dreamer_jax/agents"):
        own = [name for name in agents if path.stem.startswith(name)]
        reached = [
            name
            for name in imports(path.read_text(), "dreamer_jax.agents")
            if name.startswith(tuple(f"dreamer_jax.agents.{a}" for a in agents if a not in own))
        ]
        assert not reached, path.name


def files(*packages: str) -> list[Path]:
    return [path for name in packages for path in sorted((ROOT / name).rglob("*.py"))]


def test_imports_only_go_down():
    found = [
        violation
        for path in files("dreamer_jax", "envs", "ddim_jax")
        for violation in violations(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert not found


def test_every_room_is_on_the_list():
    inside = {path.relative_to(ROOT).with_suffix("").parts[1] for path in files("dreamer_jax")}
    assert inside <= {*ROOMS, FREE, "__init__"}


def test_no_file_is_too_long():
    lengths = {
        path: path.read_text().count("\n") for path in files("dreamer_jax", "ddim_jax", "envs")
    }
    too_long = {p.name: n for p, n in lengths.items() if n > MOST_LINES}
    assert not too_long


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("dreamer_jax/ops/x.py", "from dreamer_jax.nn import blocks"),
        ("dreamer_jax/nn/x.py", "import dreamer_jax.world_models.rssm"),
        ("dreamer_jax/world_models/x.py", "from dreamer_jax import imagination"),
        ("dreamer_jax/world_models/x.py", "from ..agents import dlc_v1"),
        ("dreamer_jax/agents/x.py", "def f():\n    from envs.vector import VectorEnv"),
        ("dreamer_jax/agents/x.py", "from flax import linen"),
        ("dreamer_jax/ops/x.py", "import flax.struct"),
        ("dreamer_jax/training/x.py", "import flax.linen as nn"),
        ("dreamer_jax/training/x.py", "from ddim_jax.sampler import sample"),
        ("dreamer_jax/errors.py", "from dreamer_jax.types import Spec"),
        ("envs/x.py", "import jax.numpy as jnp"),
        ("envs/x.py", "from dreamer_jax.errors import UserError"),
        ("ddim_jax/x.py", "from dreamer_jax.ops import returns"),
        ("ddim_jax/x.py", "from dreamer_jax.training import loop"),
        ("ddim_jax/x.py", "from ddim_jax.training import frames"),
        ("ddim_jax/x.py", "from envs.make import MakeEnv"),
        ("ddim_jax/training/x.py", "from experiments import car_racing"),
    ],
)
def test_the_checker_finds_a_planted_violation(path, line):
    assert len(violations(path, "import numpy\n" + line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("dreamer_jax/training/x.py", "from envs.make import MakeEnv"),
        ("dreamer_jax/training/x.py", "from dreamer_jax.agents.dlc_v1 import make_dlc_v1"),
        ("dreamer_jax/agents/x.py", "from flax import struct"),
        ("dreamer_jax/ops/x.py", "from dreamer_jax.errors import UserError"),
        ("dreamer_jax/ops/x.py", "from dreamer_jax.ops.keys import named_key"),
        ("dreamer_jax/ops/x.py", "from .keys import named_key"),
        ("ddim_jax/x.py", "from dreamer_jax.nn.blocks import MLP"),
        ("ddim_jax/training/x.py", "from dreamer_jax.training.loop import Scenes"),
        ("ddim_jax/training/x.py", "from envs.make import MakeEnv"),
    ],
)
def test_the_checker_lets_good_imports_pass(path, line):
    assert not violations(path, line)
