"""Seeds of training and evaluation never meet."""

import pickle

import pytest

from envs.make import HELD_OUT, EpisodeSeeds, HeldOutSeeds, MakeEnv


def test_training_never_plays_a_held_out_seed():
    seeds = {EpisodeSeeds(base)(i) for base in range(50) for i in range(200)}
    assert min(seeds) >= HELD_OUT and max(seeds) < 2**31
    assert len(seeds) > 9_990  # hashed: a few of 10 000 may meet, streams do not


def test_training_seeds_depend_on_base_and_episode_alone():
    assert EpisodeSeeds(3)(7) == pickle.loads(pickle.dumps(EpisodeSeeds(3)))(7)
    assert EpisodeSeeds(3)(8) not in (EpisodeSeeds(3)(7), EpisodeSeeds(4)(7))
    with pytest.raises(ValueError, match="base"):
        EpisodeSeeds(-1)


def test_held_out_seeds_are_shared_out_in_order():
    played = [HeldOutSeeds(100 + e, stride=4)(i) for i in range(3) for e in range(4)]
    assert played == list(range(100, 112))


@pytest.mark.parametrize(("first", "stride"), [(-1, 1), (HELD_OUT, 1), (0, 0)])
def test_seeds_that_are_not_held_out_are_refused(first, stride):
    with pytest.raises(ValueError, match="HeldOutSeeds"):
        HeldOutSeeds(first, stride)


def test_held_out_seeds_run_out():
    with pytest.raises(ValueError, match="evaluate fewer"):
        HeldOutSeeds(HELD_OUT - 1)(1)


def test_make_env_passes_its_arguments():
    env = pickle.loads(pickle.dumps(MakeEnv("DreamerCarRacing-v3", {"action_repeat": 2})))()
    assert env.unwrapped.action_repeat == 2
