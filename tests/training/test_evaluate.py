"""Episodes shared out to environments."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.training import evaluate
from dreamer_jax.training.config import EnvConfig
from dreamer_jax.training.environments import PLAIN, make_env
from dreamer_jax.training.evaluate import _Game


class Lanes:
    """Every step ends an episode, whose return is its seed plus 100 for each learner before."""

    observation_space = {}  # noqa: RUF012

    def __init__(self, learners: int, parallel: int) -> None:
        self.num_envs = learners * parallel
        lane = np.arange(self.num_envs)
        self.seeds, self.parallel = lane % parallel + 100.0 * (lane // parallel), parallel

    def step(self, actions, active):
        ones = np.ones(self.num_envs, bool)
        record = SimpleNamespace(
            observation={}, is_first=ones, is_last=ones, reward=self.seeds.copy(),
            frames=7 * ones, lap_finished=ones, progress=0.5 * ones,
        )  # fmt: skip
        record.copy = lambda: record
        self.seeds[active] += self.parallel
        return record


@pytest.mark.parametrize(("episodes", "parallel"), [(11, 10), (6, 3), (5, 4), (1, 1)])
def test_any_number_of_episodes_in_the_order_of_their_seeds(episodes, parallel):
    game, steps = _Game(Lanes(2, parallel), 2, episodes), 0
    while game.active.any():
        game.step(np.zeros(0))
        steps += 1
    played = game.result()
    assert steps == -(-episodes // parallel)
    np.testing.assert_array_equal(played.returns, [np.arange(episodes), 100 + np.arange(episodes)])
    assert played.laps.all() and (played.frames == 7).all() and (played.progress == 0.5).all()


TRAINED = EnvConfig(
    idle_limit=80,
    missed_limit=5,
    missed_cost=2.0,
    off_road_cost=0.5,
    limit_ends=True,
    road_goes_on=True,
    both_ways=True,
    off_road_ends=True,
    timeout=33.0,
)
EPISODES, FIRST = 12, 40  # ten at a time, then two


class Tracks(Lanes):
    """Every step ends an episode, whose return is the seed that its stream gives."""

    def __init__(self, make, seeds, timeout):
        super().__init__(1, len(seeds))
        self.make, self.streams, self.timeout = make, seeds, timeout
        self.played = np.zeros(len(seeds), int)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def step(self, actions, active):
        record = super().step(actions, active)
        record.reward = np.array(
            [own(int(n)) for own, n in zip(self.streams, self.played, strict=True)]
        )
        self.played[active] += 1
        return record


@pytest.fixture
def watched(monkeypatch):
    """What two learners were judged by: the environments, the keys [steps, 2], the results."""
    made, keys = [], []

    def vector_env(*args, **options):
        made.append(Tracks(*args, **options))
        return made[-1]

    def act(state, acting, obs, is_first, active, own, mode):
        keys.append(jax.random.key_data(own))
        return jnp.zeros((*active.shape, 2)), acting

    monkeypatch.setattr(evaluate, "VectorEnv", vector_env)
    both = jax.vmap(jax.random.key)(jnp.array([3, 5]))
    given = (SimpleNamespace(act=act), lambda n: jnp.zeros((n, 1)), None, TRAINED, both)
    played = evaluate.evaluate(*given, EPISODES, FIRST)
    (env,) = made
    return env, np.array(keys), played


def test_what_training_alone_may_have_is_left_out(watched):
    """The ends that belong to the task are kept."""
    env = watched[0]
    assert all(getattr(TRAINED, name) != value for name, value in PLAIN.items())
    assert {name: env.make.kwargs[name] for name in PLAIN} == PLAIN
    assert env.make.kwargs["off_road_ends"] and env.make == make_env(TRAINED, **PLAIN)
    assert env.timeout == 33.0


def test_every_learner_plays_the_tracks_asked_for(watched):
    env, _, played = watched
    assert [own(0) for own in env.streams] == 2 * [*range(FIRST, FIRST + 10)]
    assert [own(1) for own in env.streams] == 2 * [*range(FIRST + 10, FIRST + 20)]
    np.testing.assert_array_equal(played.returns, 2 * [[*range(FIRST, FIRST + EPISODES)]])


def test_every_step_and_learner_has_a_key_of_its_own(watched):
    keys = watched[1]
    assert keys.shape[:2] == (2, 2)
    assert len(np.unique(keys.reshape(4, -1), axis=0)) == 4
