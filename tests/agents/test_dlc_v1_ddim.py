"""The arm that starts from generated scenes, on a network of a few neurons."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import AGENT, CONFIG, SPEC, paint, play

from dreamer_jax.agents import dlc_v1_ddim
from dreamer_jax.agents.dlc_v1_config import GeneratedConfig
from dreamer_jax.agents.dlc_v1_ddim import make_dlc_v1_ddim
from dreamer_jax.agents.dlc_v1_parts import make_parts
from dreamer_jax.nn.conv import fold, to_unit
from dreamer_jax.ops.keys import named_key
from dreamer_jax.training.learner import make_learner

KEY = jax.random.key(7)
GENERATED = GeneratedConfig(
    pool=48, fresh=32, every=2, align_hidden=8, discriminator_hidden=(8,), align_lr=1e-2
)


def agent_of(**changes):
    return make_dlc_v1_ddim(CONFIG, replace(GENERATED, **changes), SPEC)


@partial(jax.jit, static_argnames="warm_up")
def compiled(state, batch, key, knobs, warm_up):
    """One update with other numbers in the settings, none of which needs another compilation."""
    return agent_of(warm_up=warm_up, **knobs).update(state, batch, key)


def step(state, batch, key=KEY, warm_up=0, **changes):
    knobs = {name: getattr(GENERATED, name) for name in ("fraction", "reject_above", "from_update")}
    return compiled(state, batch, key, knobs | changes, warm_up)


def starts(key, number):
    """Scenes of the little game: white up to a random place."""
    x = jax.random.uniform(key, (number,), minval=-1.0)
    white = jnp.arange(24) < (x[:, None] + 1) * 12
    images = jnp.broadcast_to(white[:, None, :, None], (number, *SPEC.image))
    return images.astype(jnp.uint8) * 255


@pytest.fixture(scope="module")
def fresh():
    agent = agent_of()
    state = jax.jit(agent.init)(jax.random.key(0))
    return state.replace(pool=starts(jax.random.key(1), GENERATED.pool))


@pytest.fixture(scope="module")
def batch():
    return play(0)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def changed(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def test_a_share_of_zero_is_the_baseline_bit_for_bit(fresh, batch):
    baseline = jax.jit(AGENT.update)
    state, base = fresh, AGENT.init(jax.random.key(0))
    assert_equal(state.dlc, base)
    for number in range(4):
        key = jax.random.fold_in(KEY, number)
        state, metrics = step(state, batch, key, fraction=0.0)
        base, want = baseline(base, batch, key)
        assert_equal(state.dlc, base)
        assert_equal({name: metrics[name] for name in want}, want)
    assert int(state.step) == 4


def test_the_model_learns_the_same_whatever_the_share(fresh, batch):
    """Generated images teach the behaviour, never the world model."""
    one, _ = step(fresh, batch)
    other, _ = step(fresh, batch, fraction=0.0)
    assert_equal(one.dlc.model, other.dlc.model)
    assert changed(one.dlc.critic, other.dlc.critic)


def test_everything_moves_that_should(fresh, batch):
    new, metrics = step(fresh, batch)
    assert changed(new.alignment.align, fresh.alignment.align)
    assert changed(new.alignment.discriminator, fresh.alignment.discriminator)
    assert changed(new.dlc.critic, fresh.dlc.critic)
    assert_equal(new.pool, fresh.pool)
    second, _ = step(new, batch)
    assert changed(second.dlc.actor, new.dlc.actor)
    assert all(name in metrics for name in agent_of().losses)


@pytest.mark.parametrize(("fraction", "number"), [(0.0, 0), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_the_share_is_kept(fresh, batch, fraction, number):
    _, metrics = step(fresh, batch, fraction=fraction)
    assert float(metrics["generated/starts"]) * CONFIG.starts == number
    assert np.isnan(metrics["generated/return"]) == (number == 0)
    assert np.isnan(metrics["generated/return_replayed"]) == (number == CONFIG.starts)


def test_a_generated_start_is_alive_whatever_it_replaces(fresh, batch):
    over = batch.replace(is_terminal=np.ones_like(batch.is_terminal))
    for fraction in (0.0, 1.0):
        new, metrics = step(fresh, over, fraction=fraction)
        assert changed(new.dlc.critic, fresh.dlc.critic) == (fraction == 1.0)
        assert (metrics["loss/critic"] > 0) == (fraction == 1.0)


def test_the_images_matter_and_so_does_the_key(fresh, batch):
    one, _ = step(fresh, batch)
    other, _ = step(fresh.replace(pool=255 - fresh.pool), batch)
    assert changed(one.dlc.critic, other.dlc.critic)
    again, _ = step(fresh, batch)
    assert_equal(one, again)


def test_images_have_their_turn(fresh, batch):
    """pool 48, 16 starts, 2 updates each: updates 0 and 1 see images 0-15, 2 and 3 the next."""

    def critic_after(number, pool):
        dlc = fresh.dlc.replace(step=jnp.int32(number))
        return step(fresh.replace(dlc=dlc, pool=pool), batch)[0].dlc.critic

    for number, turn in ((0, 0), (1, 0), (2, 1), (4, 2), (5, 2), (6, 0)):
        for block in range(3):
            pool = fresh.pool.at[16 * block : 16 * (block + 1)].set(0)
            seen = changed(critic_after(number, pool), critic_after(number, fresh.pool))
            assert seen == (block == turn), (number, block)


def test_refresh_renews_the_oldest_images(fresh):
    new = agent_of().refresh(fresh, jax.tree_util.Partial(starts), KEY)
    assert np.array_equal(new.pool[:16], fresh.pool[32:])
    keys = jax.random.split(KEY, 2)
    assert np.array_equal(new.pool[16:32], starts(keys[0], 16))
    assert np.array_equal(new.pool[32:], starts(keys[1], 16))
    assert_equal(new.dlc, fresh.dlc)


def test_a_start_has_no_memory_and_the_posterior_of_its_image(fresh):
    """h = 0, z ~ posterior(0, Align(Enc(x))), put together by hand."""
    parts = make_parts(CONFIG, SPEC)
    alignment = dlc_v1_ddim.make_alignment(CONFIG.embed, 8, (8,), 1e-2, 1e-3, 1e-5, 100.0)
    scenes = dlc_v1_ddim.GeneratedStarts(parts, CONFIG, GENERATED, alignment)
    moved = jax.tree.map(lambda x: x + 0.1, fresh.alignment.align)
    align = fresh.alignment._replace(align=moved)
    images = paint(np.linspace(-1, 1, 4))
    embed = scenes.embed(fresh.dlc.model, images)
    want = parts.encoder.apply(fresh.dlc.model["encoder"], to_unit(fold(jnp.asarray(images), 12)))
    np.testing.assert_allclose(embed, want, rtol=1e-6)
    state, score = scenes.states(fresh.dlc, align, embed, KEY)
    assert state.deter.shape == (4, CONFIG.deter) and not np.any(state.deter)
    rssm, params = parts.rssm, fresh.dlc.model["rssm"]
    projected = rssm.apply(params, alignment.apply(align, embed), method=rssm.project)
    mean, std = rssm.apply(params, jnp.zeros((4, CONFIG.deter)), projected, method=rssm.posterior)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
    noise = jax.random.normal(KEY, (1, 4, CONFIG.stoch))[0]
    np.testing.assert_allclose(state.stoch, mean + std * noise, rtol=1e-4)
    assert np.all((score > 0) & (score < 1))


def test_the_alignment_learns_from_real_embeddings_and_from_generated_ones(fresh, batch):
    """Its own update by hand: 16 of the 48 embeddings of the batch are real, the first 16 images
    of the pool are generated. Where a gradient is as small as Adam's epsilon, its last digits count
    in the step, which is of 0.001 or 0.01."""
    parts = make_parts(CONFIG, SPEC)
    alignment = dlc_v1_ddim.make_alignment(
        CONFIG.embed, 8, (8,), 1e-2, GENERATED.discriminator_lr, 1e-5, 100.0
    )
    scenes = dlc_v1_ddim.GeneratedStarts(parts, CONFIG, GENERATED, alignment)
    images = jnp.asarray(batch.obs["image"]).reshape(48, *SPEC.image)
    real = scenes.embed(fresh.dlc.model, images)
    generated = scenes.embed(fresh.dlc.model, fresh.pool[:16])
    index = jax.random.choice(named_key(KEY, "real"), 48, (16,), replace=False)
    want, _ = alignment.update(fresh.alignment, real[index], generated)
    got = step(fresh, batch)[0].alignment
    close = partial(np.testing.assert_allclose, atol=5e-5)
    jax.tree.map(close, got, want)


def test_warm_up_gives_the_start_a_memory(fresh, batch):
    one, _ = step(fresh, batch)
    other, metrics = step(fresh, batch, warm_up=2)
    assert changed(one.dlc.critic, other.dlc.critic)
    assert all(np.isfinite(metrics[name]) for name in agent_of().losses)


def test_warm_up_goes_on_from_the_first_posterior(fresh):
    """By hand: the state of no warm-up, its most probable action, one step of the recurrence."""
    parts = make_parts(CONFIG, SPEC)

    def scenes(warm_up):  # these need no alignment
        config = replace(GENERATED, warm_up=warm_up)
        return dlc_v1_ddim.GeneratedStarts(parts, CONFIG, config, None)

    embed = jax.random.normal(KEY, (4, CONFIG.embed))
    key = jax.random.key(3)
    noise = jax.random.normal(key, (2, 4, CONFIG.stoch))
    rssm, params = parts.rssm, fresh.dlc.model["rssm"]
    first = scenes(0).filtered(fresh.dlc, embed, key)
    first = first.replace(stoch=first.mean + first.std * noise[0])
    action = jnp.tanh(parts.actor.apply(fresh.dlc.actor, first.features)[..., : SPEC.action])
    deter = rssm.apply(params, first.deter, first.stoch, action, method=rssm.recur)
    second = scenes(1).filtered(fresh.dlc, embed, key)
    np.testing.assert_allclose(second.deter, deter, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.stoch, second.mean + second.std * noise[1], rtol=1e-5)


def test_starts_that_look_false_are_replaced(fresh, batch):
    _, metrics = step(fresh, batch, reject_above=0.0)
    assert float(metrics["generated/starts"]) == 0.0
    some = float(metrics["generated/score"])
    _, metrics = step(fresh, batch, reject_above=some)
    assert 0 < float(metrics["generated/starts"]) < 1


def test_a_late_start_of_the_arm_is_the_baseline_until_then(fresh, batch):
    early, _ = step(fresh, batch, from_update=1)
    baseline, _ = step(fresh, batch, fraction=0.0)
    assert_equal(early.dlc, baseline.dlc)
    late, metrics = step(early, batch, from_update=1)
    assert float(metrics["generated/starts"]) == 1.0 and int(late.step) == 2


def test_the_report_shows_what_becomes_of_the_images(fresh, batch):
    arrays = jax.jit(agent_of().report)(fresh, batch, KEY)
    rows = 8
    assert arrays["generated"].shape == (rows, *SPEC.image)
    assert arrays["generated_before"].shape == arrays["generated_after"].shape
    assert arrays["generated_video"].shape == (rows, CONFIG.horizon, *SPEC.image)
    np.testing.assert_allclose(arrays["generated"], fresh.pool[:rows] / 255.0, rtol=1e-6)
    assert "open_prediction" in arrays and "generated_return" in arrays


def test_learners_generate_images_of_their_own():
    agent = agent_of()
    learner = make_learner(agent, SPEC, 2, 2, 6, 8)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    state = learner.init(keys)
    state = learner.refresh(state, jax.tree_util.Partial(starts), keys, jnp.int32(0))
    assert state.pool.shape == (2, 48, *SPEC.image)
    assert not np.array_equal(state.pool[0], state.pool[1])
    alone = learner.refresh(
        learner.init(keys[1:]), jax.tree_util.Partial(starts), keys[1:], jnp.int32(0)
    )
    assert np.array_equal(state.pool[1], alone.pool[0])
    first = np.array(alone.pool)
    after = learner.refresh(alone, jax.tree_util.Partial(starts), keys[1:], jnp.int32(1))
    assert not np.array_equal(after.pool[0][16:], first[0][16:])
