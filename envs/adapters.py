"""Any Gymnasium environment as one that agents can learn: named arrays, actions in [-1, 1].

`make` also knows where Atari games and DeepMind's control suite come from.
"""

import contextlib
import importlib
import math
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs import registration
from gymnasium.error import DependencyNotInstalled, Error
from gymnasium.wrappers import AtariPreprocessing

from envs.conversions import action_map, observation_parts, picture

ATARI = "ALE/"
CONTROL = "dm_control/"
ATARI_SIZE = 64  # height and width of the pictures, and
NO_OPS = 30  # most no-ops at the start of an episode, in the protocol of 100k steps


def is_atari(env_id: str) -> bool:
    """Whether the id, with or without its module before a colon, is that of an Atari game."""
    return env_id.rpartition(":")[2].startswith(ATARI)


def is_control(env_id: str) -> bool:
    """Likewise of a task of DeepMind's control suite."""
    return env_id.rpartition(":")[2].startswith(CONTROL)


def registered(env_id: str) -> registration.EnvSpec | None:
    """What the id stands for once the module before its colon is imported; None: nothing.

    Raises:
        ValueError: the module cannot be imported, or the id is an Atari game's without "ALE/".
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    try:
        namespace, short, version = registration.parse_env_id(name)
    except Error:
        return None  # `gymnasium.make` says what is wrong
    if version is None:
        version = registration.find_highest_version(namespace, short)
    spec = gymnasium.registry.get(registration.get_env_id(namespace, short, version))
    if spec is not None and not is_atari(env_id) and str(spec.entry_point).startswith("ale_py."):
        game = spec.kwargs.get("game", "game").title().replace("_", "")
        raise ValueError(
            f"{env_id}: Atari games have the protocol of 100k steps by another id; use "
            f"{ATARI}{game}-v5"
        )
    return spec


def _import(module: str, env_id: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"{env_id}: the module {module} cannot be imported: {type(error).__name__}: "
            f"{error}{_place(error)}; it must be on PYTHONPATH and free of errors"
        ) from error


def _place(error: Exception) -> str:
    """File and line, within what was imported, that raised it; "" if nothing there ran."""
    _, *frames = traceback.extract_tb(error.__traceback__)
    frames = [each for each in frames if "importlib" not in each.filename]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""


class Adapted(gymnasium.Wrapper):
    """`env` with an observation space of Boxes by name and actions float32 [n] in [-1, 1].

    How spaces are converted is said at `envs.conversions.observation_parts` and `action_map`;
    `discrete` is whether the largest entry of the action is the choice. `info` says how many
    `frames` a decision took, steps of `env`; a race's figures are 0 in it.

    Args:
        action_repeat: steps per decision, rewards summed; the repeat stops at an end.
        time_limit: frames after which the episode is truncated, also amidst a repeat; 0: never.
            Limits of the environment's own remain.
        pixels: observe the rendered picture at this height and width, and nothing else; 0: what the
            environment gives. `env` must have the render mode "rgb_array".
        size: height and width of other pictures; 0: as they come.

    Raises:
        ValueError: an option out of range, or a space that cannot be converted; later, what `env`
            gives is not what its spaces say, or not finite.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        action_repeat: int = 1,
        time_limit: int = 0,
        pixels: int = 0,
        size: int = 0,
    ):
        super().__init__(env)
        check_options(action_repeat, time_limit, pixels, size)
        self.action_repeat, self.time_limit, self.pixels = action_repeat, time_limit, pixels
        if pixels and env.render_mode != "rgb_array":
            raise ValueError(f"pixels: {env} has not the render mode 'rgb_array'; use pixels=0.")
        self._actions = action_map(env.action_space)
        self.discrete = self._actions.discrete
        self.action_space = spaces.Box(-1.0, 1.0, (self._actions.size,), np.float32)
        self._parts = {} if pixels else observation_parts(env.observation_space, size)
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (pixels, pixels, 3), np.uint8)}
            if pixels
            else {name: part.box for name, part in self._parts.items()}
        )

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode -> (observation, info)."""
        self._frame = 0
        self._seen, info = self.env.reset(seed=seed, options=options)
        return self._observation(), _info(info, 0)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """One decision: float32 [n] -> (observation, reward, terminated, truncated, info)."""
        results = self.simulate(action)
        return self._observation(), *results

    def simulate(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """`step` without the observation: float32 [n] -> (reward, terminated, truncated, info)."""
        before, total, own = self._frame, 0.0, self._actions.convert(action)
        for _ in range(self.action_repeat):
            self._seen, reward, terminated, truncated, info = self.env.step(own)
            total += _finite(reward)
            self._frame += getattr(self.env, "frames_of_step", 1)
            truncated = truncated or 0 < self.time_limit <= self._frame
            if terminated or truncated:
                break
        return total, bool(terminated), bool(truncated), _info(info, self._frame - before)

    def _observation(self) -> dict[str, np.ndarray]:
        if self.pixels:
            return {"image": picture(_rendered(self.env), self.pixels)}
        seen = {name: part.take(self._seen) for name, part in self._parts.items()}
        for name, value in seen.items():
            _check_entry(name, value, self._parts[name].box.shape)
        return seen


def _finite(reward: Any) -> float:
    if not math.isfinite(value := float(reward)):
        raise ValueError(f"reward: the environment gave {value}; correct it there.")
    return value


def _check_entry(name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ValueError where an observation's entry is not what its space says."""
    if value.shape != shape:
        raise ValueError(
            f"observation: {name!r} makes an array of shape {value.shape} where its space makes "
            f"{shape}; correct the environment or its observation_space."
        )
    if value.dtype != np.uint8 and not np.isfinite(value).all():
        raise ValueError(
            f"observation: {name!r} contains nan or an infinite number; correct the environment, "
            "or clip it with a gymnasium.ObservationWrapper."
        )


def _rendered(env: gymnasium.Env) -> np.ndarray:
    image = np.asarray(env.render())
    channels = image.shape[2:] or (1,)
    if image.ndim < 2 or channels not in ((1,), (3,)) or image.dtype.kind not in "iu":
        raise ValueError(
            f"pixels: render() gives {image.dtype} of shape {image.shape}, where whole numbers "
            "from 0 to 255, [height, width, 3], are asked for; correct it, or use pixels=0."
        )
    return np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))


def _info(info: dict[str, Any], frames: int) -> dict[str, Any]:
    """The environment's own, but for the names that mean something here."""
    return info | {"frames": frames, "progress": 0.0, "lap_finished": False, "given": True}


class AtariGame(AtariPreprocessing):
    """One step is up to `frame_skip` frames of the game; `frames_of_step` says how many.

    Preprocessed as in the protocol of 100k steps: the last two frames of a step pooled, up to 30
    no-ops at the start, the loss of a life ends nothing.
    """

    def __init__(self, env: gymnasium.Env, frame_skip: int, size: int, grayscale: bool):
        super().__init__(
            env,
            noop_max=NO_OPS,
            frame_skip=frame_skip,
            screen_size=size,
            terminal_on_life_loss=False,
            grayscale_obs=grayscale,
            grayscale_newaxis=True,
        )
        self.frames_of_step = 0

    def step(self, action: int) -> tuple:
        """See `AtariPreprocessing`."""
        before = self.ale.getEpisodeFrameNumber()
        result = super().step(action)
        self.frames_of_step = self.ale.getEpisodeFrameNumber() - before
        return result


def make(
    env_id: str,
    *,
    action_repeat: int = 1,
    time_limit: int = 0,
    pixels: int = 0,
    size: int = 0,
    grayscale: bool = False,
    **options: Any,
) -> Adapted:
    """The environment `env_id`, adapted; further options are those of its constructor.

    "ALE/..." are Atari games (extra `atari`) after the protocol of 100k steps: `AtariGame` with
    `action_repeat` as the frame skip, `size` or else 64, the actions that the game uses, none of
    them repeated at random. "dm_control/..." are DeepMind's control tasks (extra `dmc`).
    `grayscale` is for Atari alone. Pictures of MuJoCo are rendered with EGL where there is no
    display and MUJOCO_GL does not say otherwise.

    Raises:
        ValueError: no such environment, a package that is not installed, pictures of DeepMind
            control that cannot be drawn, or as `registered` and `Adapted`.
    """
    check_options(action_repeat, time_limit, pixels, size)
    if is_atari(env_id) or is_control(env_id):
        env_id = env_id.rpartition(":")[2]  # its package is imported here
    if grayscale and not is_atari(env_id):
        raise ValueError(f"grayscale: {env_id} is no Atari game; leave it out.")
    _do_without_display(bool(pixels))
    with _said_clearly(env_id):
        if is_atari(env_id):
            game = _atari_game(env_id, options)
            env = AtariGame(game, action_repeat, pixels or size or ATARI_SIZE, grayscale)
            return Adapted(env, time_limit=time_limit)
        if is_control(env_id):
            _register_control()
        else:
            registered(env_id)
        usual = _rendering(env_id, pixels) if pixels else {}
        env = gymnasium.make(env_id, disable_env_checker=True, **usual | options)
    limits = {"action_repeat": action_repeat, "time_limit": time_limit}
    return Adapted(env, **limits, pixels=pixels, size=size)


def _atari_game(env_id: str, options: dict[str, Any]) -> gymnasium.Env:
    import ale_py

    gymnasium.register_envs(ale_py)
    usual = {"frameskip": 1, "repeat_action_probability": 0.0, "full_action_space": False}
    return gymnasium.make(env_id, disable_env_checker=True, **usual | options)


def _register_control() -> None:
    import dm_control  # noqa: F401  without it shimmy registers nothing, silently
    import shimmy

    gymnasium.register_envs(shimmy)


def _rendering(env_id: str, pixels: int) -> dict[str, Any]:
    """Options of an environment that draws pictures."""
    if not is_control(env_id):
        return {"render_mode": "rgb_array"}
    camera = 2 if "quadruped" in env_id else 0  # as in published results
    size = {"height": pixels, "width": pixels}
    return {"render_mode": "rgb_array", "render_kwargs": size | {"camera_id": camera}}


@contextlib.contextmanager
def _said_clearly(env_id: str) -> Iterator[None]:
    """Turns errors of registries, imports and OpenGL into a ValueError with the remedy."""
    try:
        yield
    except Exception as error:
        if is_control(env_id) and _is_of_drawing(error):
            raise ValueError(f"{env_id}: {_cannot_draw(error)}") from error
        if not isinstance(error, ImportError | Error):
            raise
        extras = {ATARI: "'.[atari]'", CONTROL: "'.[dmc]' (Python 3.11 or 3.12)"}
        extra = next((extras[x] for x in extras if env_id.startswith(x)), None)
        missing = extra and isinstance(error, ImportError | DependencyNotInstalled)
        remedy = f"; install it: pip install -e {extra}" if missing else ""
        raise ValueError(f"{env_id}: {error}{remedy}") from error


def _is_of_drawing(error: Exception) -> bool:
    """Whether an error of DeepMind control's import or making is one of loading OpenGL.

    A library or a display that is missing is an ImportError without the name of a module, or an
    attribute that PyOpenGL asks of what it did not find, or MuJoCo's own error, where the task
    itself has cameras.
    """
    if type(error).__name__ == "FatalError":
        return type(error).__module__.startswith("mujoco")
    if isinstance(error, AttributeError):
        return "OpenGL" in traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, ImportError) and error.name is None


def _cannot_draw(error: Exception) -> str:
    chosen = os.environ.get("MUJOCO_GL", "")
    return (
        f"MuJoCo cannot draw with MUJOCO_GL={chosen} ({error}); set MUJOCO_GL=egl (Debian: apt "
        "install libegl1) or MUJOCO_GL=osmesa (apt install libosmesa6)"
    )


def _do_without_display(draws: bool) -> None:
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if draws:
            os.environ.setdefault("MUJOCO_GL", "egl")


def check_options(action_repeat: int, time_limit: int, pixels: int, size: int) -> None:
    """Raises ValueError for what is out of range."""
    for name, value, least in (
        ("action_repeat", action_repeat, 1),
        ("time_limit", time_limit, 0),
        ("pixels", pixels, 0),
        ("size", size, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}: {value!r} given; use a whole number of at least {least}.")
