"""DreamerV3 in its final form (Hafner et al. 2025): one loss, one optimiser.

    update:  batch -> posterior states, going on from the stored latents -> reconstruction, reward,
             continue, two clipped KLs
             the last states of each sequence -> rollout of H steps -> lambda-returns
             actor: REINFORCE on advantages divided by the range of returns, entropy
             value: two-hot cross entropy to the returns, pulled towards its slow copy
             value on the replayed states: lambda-returns of real rewards, bootstrapped from the
             imagined returns
             the sum of all -> AGC -> LaProp;  slow value: EMA
             the posterior states go back beside the records they precede

Only the replay value loss and the world model's own losses reach the world model.

The authors' program differs in five ways: every record is replayed once while it is new, before
sequences are drawn uniformly, as here all are; the range of returns is not corrected for its start
at 0; classes that are seen are decoded by their cross entropy, here by squared errors like all
vectors; pictures pass through kernels of 5 with max-pooling, here through those of 2023; vectors
pass through normed layers alone, here through a linear one behind them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamer_jax.agents import pictures
from dreamer_jax.agents.acting import ActCarry, act_by_policy, alive, empty_carry, last_states
from dreamer_jax.agents.dreamer_v3_config import DreamerV3Config
from dreamer_jax.agents.dreamer_v3_parts import (
    DreamerV3State,
    Parts,
    init_state,
    make_optimiser,
    make_parts,
)
from dreamer_jax.imagination import rollout
from dreamer_jax.ops import categorical
from dreamer_jax.ops.keys import named_key
from dreamer_jax.ops.moments import Range, offset_and_scale, update_range
from dreamer_jax.ops.optimisers import ema
from dreamer_jax.ops.returns import lambda_returns, survival_weights
from dreamer_jax.types import Agent, DiscreteState, Metrics, Params, Spec, Transition

WATCHED = ("loss/total", "grad_norm/all")
sg = jax.lax.stop_gradient


def make_dreamer_v3(config: DreamerV3Config, spec: Spec, losses: type[View] | None = None) -> Agent:
    """The agent as pure functions; `losses` may be another form of `View`."""
    parts = make_parts(config, spec)
    optimiser = make_optimiser(config)
    view = (losses or View)(parts, config)

    def init(key: jax.Array) -> DreamerV3State:
        """Fresh parameters and optimiser."""
        return init_state(parts, spec, key, optimiser)

    def carry(num_envs: int) -> ActCarry:
        """Zero state and action for N environments."""
        return empty_carry(parts.world, num_envs, spec.action)

    def act(state, carry, obs, is_first, key, mode):
        """obs leaves [N, ...], is_first bool [N] -> action [N, A] in [-1, 1] or one-hot, carry.

        Actions are sampled in evaluation too, as published; latents always.
        """
        nets = (parts.world, parts.actor, parts.policy, state.params, state.params["actor"])
        how = "calm" if mode == "calm" else "train"
        return act_by_policy(*nets, carry, (obs, is_first, key, how))

    def context(carry: ActCarry) -> Any:
        """What sequences that begin with the next record start from, leaves [N, ...]."""
        return parts.storage.pack(carry.state)

    def update(
        state: DreamerV3State, batch: Transition, key
    ) -> tuple[DreamerV3State, Metrics, Any]:
        """One update of everything: batch [T, B, ...]."""
        loss = jax.grad(view.loss, has_aux=True)
        grads, aux = loss(state.params, state.slow, state.returns, batch, key)
        posterior, returns, metrics = aux
        updates, opt = optimiser.update(grads, state.opt, state.params)
        params = parts.world.settle(optax.apply_updates(state.params, updates), batch, state.step)
        metrics["grad_norm/all"] = optax.global_norm(grads)
        metrics["update_norm/all"] = optax.global_norm(updates)
        slow = ema(state.slow, params["value"], config.slow_rate)
        known = parts.storage.pack(jax.tree.map(lambda x: x[:-1], posterior))
        return DreamerV3State(params, slow, opt, returns, state.step + 1), metrics, known

    def report(state: DreamerV3State, batch: Transition, key) -> dict[str, jax.Array]:
        """Reconstructions, open-loop predictions and imagined values, see `agents/pictures.py`."""
        posterior, _ = view.observe(state.params, batch, key)
        *_, imagined = view.imagine(state.params, last_states(posterior, config.last), batch, key)
        arrays = pictures.look(pictures.of(parts.world, state.params), batch, posterior)
        return arrays | {"value": imagined.values[:-1], "return": imagined.returns}

    axes = DreamerV3State(0, 0, 0, 0, None)
    keep = context if config.stored_latents else None
    return Agent(init, carry, act, update, report, axes, WATCHED, context=keep)


class Imagined(NamedTuple):
    """Heads on imagined states."""

    values: jax.Array  # [H + 1, B]
    returns: jax.Array  # [H, B]
    weights: jax.Array  # [H, B] probability, discount included, of getting to state t
    rewards: jax.Array  # [H + 1, B]
    continues: jax.Array  # [H + 1, B]


class View(NamedTuple):
    """The losses of these parts under these settings."""

    parts: Parts
    config: DreamerV3Config

    @property
    def gamma(self) -> float:
        """Discount per decision."""
        return 1.0 - 1.0 / self.config.discount_horizon

    def loss(self, params: Params, slow: Params, returns: Range, batch: Transition, key):
        """The sum of all losses: ([], (posterior states, range of returns, metrics))."""
        posterior, prior = self.observe(params, batch, key)
        losses = self.parts.world.losses(params, posterior.features, batch, self.gamma)
        losses |= self.kl_losses(posterior, prior)
        starts = last_states(posterior, self.config.last)
        features, actions, value, imagined = self.imagine(params, starts, batch, key)
        returns = update_range(returns, sg(imagined.returns), self.config.range_rate)
        losses |= self.behaviour_losses(params, slow, returns, features, actions, value, imagined)
        losses |= self.replay_value_loss(params, slow, posterior, batch, imagined.returns[0])
        total = sum(losses.values())
        metrics = losses | self.metrics(params, returns, posterior, prior, features, imagined)
        return total, (sg(posterior), returns, metrics | {"loss/total": total})

    def observe(self, params: Params, batch: Transition, key) -> tuple[DiscreteState, jax.Array]:
        """Posterior states [T, B, ...] and the prior's log-probabilities."""
        start = None
        if batch.context is not None:
            start = self.parts.storage.unpack(jax.tree.map(lambda x: x[0], batch.context))
        return self.parts.world.observe(params, batch, named_key(key, "observe"), start)

    def kl_losses(self, posterior: DiscreteState, prior: jax.Array) -> Metrics:
        """Each way, clipped and weighted, each []."""
        config = self.config
        kls = categorical.free_nats_kl(posterior.logits, prior, config.free_nats)
        return {
            "loss/dynamics": config.dyn_scale * jnp.mean(kls[0]),
            "loss/representation": config.rep_scale * jnp.mean(kls[1]),
        }

    def imagine(self, params: Params, start: DiscreteState, batch: Transition, key):
        """Rollouts under the actor: features [H + 1, B, F], actions [H, B, A], value, Imagined.

        The value, raw [H + 1, B, bins], has a gradient to its own parameters; Imagined has what
        `kept` leaves of the actor's, the rest none.
        """
        parts, world, fixed = self.parts, self.parts.world, sg(params)
        actor = self.kept(params["actor"])

        def policy(features, key):
            raw = parts.actor.apply(actor, sg(features))
            return parts.policy.sample(raw, key), parts.policy.entropy(raw)

        step = partial(world.imagine, fixed)
        path = rollout(step, policy, sg(start), self.config.horizon, named_key(key, "imagine"))
        features = self.kept(path.states.features)
        rewards = world.rewards(fixed, features)
        continues = world.continues(fixed, features)
        value = parts.value.apply(params["value"], sg(features))
        values = self.values(params, features, value)
        returns = lambda_returns(rewards[1:], continues[1:], values[1:], self.config.lambda_)
        weights = survival_weights(continues[1:], alive(batch.is_terminal, self.config.last))
        imagined = Imagined(values, returns, sg(weights), rewards, continues)
        return sg(features), sg(path.actions), value, self.kept(imagined)

    def kept(self, tree: Any) -> Any:
        """What imagination leaves of the gradient through it: nothing."""
        return sg(tree)

    def values(self, params, features, value) -> jax.Array:
        """Of imagined states, [H + 1, B]; `value` is the value network's answer to them."""
        return sg(self.parts.head.mean(value))

    def behaviour_losses(
        self, params, slow, returns, features, actions, value, imagined
    ) -> Metrics:
        """Actor and value on imagined states; nothing goes back into the world model."""
        parts, config = self.parts, self.config
        raw = parts.actor.apply(params["actor"], features[:-1])
        _, scale = offset_and_scale(returns)
        advantage = (imagined.returns - imagined.values[:-1]) / scale
        score = self.score(raw, actions, advantage)
        entropy = parts.policy.entropy(raw)
        excess = parts.policy.excess(raw)
        gain = score + config.entropy_scale * entropy - config.excess_scale * excess
        error = self.value_errors(value[:-1], slow, features[:-1], imagined.returns)
        return {
            "loss/actor": -jnp.mean(imagined.weights * gain),
            "loss/value": jnp.mean(imagined.weights * error),
        }

    def score(self, raw, actions, advantage) -> jax.Array:
        """REINFORCE: what has the policy's gradient, [H, B]."""
        return self.parts.policy.log_prob(raw, actions) * advantage

    def value_loss(self, params, slow, features, returns) -> jax.Array:
        """Cross entropy to the returns and to the slow copy's mean, each entry: [...]."""
        raw = self.parts.value.apply(params["value"], features)
        return self.value_errors(raw, slow, features, returns)

    def value_errors(self, raw, slow, features, returns) -> jax.Array:
        """The same where the value network's outputs [..., bins] are known already."""
        value, head = self.parts.value, self.parts.head
        slow_value = head.mean(value.apply(sg(slow), sg(features)))
        return head.loss(raw, returns) + self.config.slow_scale * head.loss(raw, slow_value)

    def replay_value_loss(self, params, slow, posterior, batch, imagined_returns) -> Metrics:
        """Value of replayed states; the gradient goes on into the world model."""
        last = slice(-self.config.last, None)
        features, reward = posterior.features[last], batch.reward[last]
        boot = imagined_returns.reshape(reward.shape)
        discount = self.gamma * (1.0 - batch.is_terminal[last].astype(jnp.float32))
        ends = jnp.concatenate([batch.is_first[1:], jnp.zeros_like(batch.is_first[:1])])[last]
        # An episode's last record bootstraps from itself; what follows it is another episode.
        mix = self.config.lambda_ * (1.0 - ends.astype(jnp.float32))
        returns = lambda_returns(reward[1:], discount[1:], boot[1:], mix[1:])
        error = self.value_loss(params, slow, features[:-1], sg(returns))
        within = 1.0 - ends[:-1].astype(jnp.float32)
        return {"loss/replay_value": self.config.replay_value_scale * jnp.mean(within * error)}

    def metrics(self, params, returns, posterior, prior, features, imagined) -> Metrics:
        """Figures to watch."""
        raw = self.parts.actor.apply(params["actor"], features[:-1])
        _, scale = offset_and_scale(returns)
        return sg(
            {
                "latent/kl": jnp.mean(categorical.kl(posterior.logits, prior)),
                "latent/prior_entropy": jnp.mean(categorical.entropy(prior)),
                "latent/posterior_entropy": jnp.mean(categorical.entropy(posterior.logits)),
                "actor/entropy": jnp.mean(self.parts.policy.entropy(raw)),
                "actor/excess": jnp.mean(self.parts.policy.excess(raw)),
                "actor/return_scale": scale,
                "imagined/return": jnp.mean(imagined.returns),
                "imagined/return_std": jnp.std(imagined.returns),
                "imagined/reward": jnp.mean(imagined.rewards[1:]),
                "imagined/value": jnp.mean(imagined.values),
                "imagined/continue": jnp.mean(imagined.continues[1:]),
            }
        )
