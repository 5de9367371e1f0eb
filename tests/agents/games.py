"""A game for agents that see vectors: shared by their tests."""

import jax
import numpy as np

from dreamer_jax.types import Spec, Transition

DISCRETE = Spec({"place": ((1,), "float32")}, 3, True)
CONTINUOUS = Spec({"place": ((1,), "float32")}, 2)


def play(spec, seed, length=8, batch=6):
    """Random play [T, B]: the reward is the action's last entry, the place is noise."""
    rng = np.random.default_rng(seed)
    if spec.discrete:
        which = rng.integers(spec.action, size=(length, batch))
        action = np.eye(spec.action, dtype=np.float32)[which]
    else:
        action = rng.uniform(-1, 1, (length, batch, spec.action)).astype(np.float32)
    is_first = np.zeros((length, batch), bool)
    is_first[0] = True
    action[0] = 0.0
    place = rng.normal(size=(length, batch, 1)).astype(np.float32)
    nowhere = np.zeros_like(is_first)
    return Transition({"place": place}, action, action[..., -1].copy(), is_first, nowhere)


def seen(spec, seed, length=8, batch=6):
    """Random play [T, B] in which sight counts: places are -1 or 1 by chance, and at a place of -1
    the other action pays (the first instead of the last; the opposite). Episodes end by chance."""
    rng = np.random.default_rng(seed)
    batch = play(spec, seed, length, batch)
    place = rng.choice([-1.0, 1.0], batch.obs["place"].shape).astype(np.float32)
    is_terminal = rng.random(batch.is_first.shape) < 0.15
    is_first = batch.is_first.copy()
    is_first[1:] |= is_terminal[:-1]
    action = np.where(is_first[..., None], 0.0, batch.prev_action).astype(np.float32)
    before = np.roll(place[..., 0], 1, axis=0)  # what was seen when the action was chosen
    reward = before * action[..., -1]
    if spec.discrete:
        reward = np.where(before > 0, action[..., -1], action[..., 0])
    reward = np.where(is_first, 0.0, reward).astype(np.float32)
    return Transition({"place": place}, action, reward, is_first, is_terminal)


def paid(agent, spec, state, key, number=20):
    """What the deterministic actions at the start of as many episodes bring in that game, on
    average: half of them at a place of -1, the others of 1."""
    act = jax.jit(agent.act, static_argnames="mode")
    place = np.resize(np.array([[-1.0], [1.0]], np.float32), (number, 1))
    start = (agent.carry(number), {"place": place}, np.ones(number, bool))
    action = np.asarray(act(state, *start, key, mode="eval")[0])
    if spec.discrete:
        return np.where(place[:, 0] > 0, action[:, -1], action[:, 0]).mean()
    return (place[:, 0] * action[:, -1]).mean()


def learn(agent, spec, updates, key, game=play):
    """State and metrics [updates] after so many updates on random play."""
    state = jax.jit(agent.init)(key)

    @jax.jit
    def many(state, batches):
        def one(state, inputs):
            return agent.update(state, *inputs)[:2]

        return jax.lax.scan(one, state, (batches, jax.random.split(key, updates)))

    batches = [game(spec, n % 30) for n in range(updates)]
    return many(state, jax.tree.map(lambda *x: np.stack(x), *batches))


def greedy(agent, spec, state, key, number=20):
    """The deterministic actions [number, A] at the start of as many episodes."""
    act = jax.jit(agent.act, static_argnames="mode")
    obs = {name: x[0] for name, x in play(spec, 99, 1, number).obs.items()}
    return act(state, agent.carry(number), obs, np.ones(number, bool), key, mode="eval")[0]
