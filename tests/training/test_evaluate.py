"""Episodes shared out to environments."""

from types import SimpleNamespace

import numpy as np
import pytest

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
