"""Impossible settings are refused by name; possible ones survive JSON."""

import dataclasses
import json
import re
from dataclasses import replace

import jax
import pytest

from dreamer_jax.errors import UserError
from dreamer_jax.training import train_ratio
from dreamer_jax.training.command import CHANGEABLE, parse, with_changes
from dreamer_jax.training.config import RunConfig, check, from_dict, to_dict
from dreamer_jax.training.presets import DEBUG, FAMILY, LAPTOP, PAPER, choose, for_env
from dreamer_jax.training.rules import (
    AT_LEAST_ONE,
    EPISODE_RULES,
    FRACTIONS,
    NOT_NEGATIVE,
    POSITIVE,
    episode_rules,
)


def changed(config, name, value):
    """`config` with one field, `part.field` or `field`, replaced."""
    part, _, inner = name.rpartition(".")
    if part:
        name, value = part, dataclasses.replace(getattr(config, part), **{inner: value})
    return dataclasses.replace(config, **{name: value})


BAD = [
    *((name, value) for name in AT_LEAST_ONE for value in (0, -3)),
    *((name, -1) for name in NOT_NEGATIVE),
    *((name, value) for name in POSITIVE for value in (0.0, -1.0, float("nan"))),
    *((name, value) for name in FRACTIONS for value in (-0.1, 1.1, float("nan"))),
    ("length", 1),
    ("length", 501),  # replay 1000 / envs 2 = 500 records in a row
    ("cycle_size", 41),  # no multiple of envs 2
    ("cycle_size", 1002),  # 501 records for a row of 500
    ("env.steer_scale", 1.1),
    ("agent.starts", 25),  # batch 3 x length 8 = 24 states
    ("agent.posterior_layers", 1),
    ("agent.bins", 40),  # an even number has no bin at 0
    ("agent.classes", 1),
    ("generated.pool", 7),  # agent.starts 8
    ("generated.pool", 20),  # no multiple of fresh 8
    ("seed", 2**31),  # seeds are int32 on the device
]


def test_every_number_is_checked():
    """A new setting that is a number belongs to one of the lists."""
    numbers = {
        prefix + field.name
        for prefix, part in (
            ("", DEBUG),
            ("env.", DEBUG.env),
            *(("agent.", presets["debug"].agent) for presets in FAMILY.values()),
            ("generated.", DEBUG.generated),
        )
        for field in dataclasses.fields(part)
        if type(getattr(part, field.name)) in (int, float) or field.type == "float | None"
    }
    assert numbers == {name for name, _ in BAD}


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_impossible_value_is_named(name, value):
    option = "--" + re.sub("_(?!$)", "-", name)
    part, _, field = name.partition(".")
    small = [presets["debug"] for presets in FAMILY.values()]
    config = next(c for c in small if part != "agent" or hasattr(c.agent, field))
    with pytest.raises(UserError, match=f"^{option}={value} cannot be: ") as error:
        check(changed(config, name, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("agent", "name"), [(agent, name) for agent, presets in FAMILY.items() for name in presets]
)
def test_presets_are_possible_and_survive_json(agent, name):
    preset = check(choose(name, agent)[0])
    assert to_dict(preset)["algorithm"] == agent
    assert from_dict(json.loads(json.dumps(to_dict(preset)))) == preset
    hash(preset)  # lists have become tuples again


@pytest.mark.parametrize(
    ("name", "value"),
    [("length", 500), ("cycle_size", 1000), ("agent.starts", 24), ("prefill", 0), ("updates", 1)],
)
def test_the_last_possible_value_passes(name, value):
    assert check(changed(DEBUG, name, value))


def test_records_of_a_cycle_by_hand():
    # 200 frames / 4 = 50 decisions and the reset; 3 episodes of them. Or 40 decisions for 2 envs.
    episodes = dataclasses.replace(DEBUG, cycle_unit="episodes", cycle_size=3)
    assert DEBUG.episode_records == 51 and episodes.chunk == 153 and DEBUG.chunk == 20
    # a last decision may be shorter: 201 frames are 51 decisions
    assert changed(DEBUG, "env.time_limit", 201).episode_records == 52
    assert PAPER.chunk == 251
    with pytest.raises(UserError, match="--cycle-size=10"):  # 510 records for a row of 500
        check(dataclasses.replace(episodes, cycle_size=10))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda d: d | {"colour": 1},
        lambda d: d | {"env": d["env"] | {"colour": 1}},
        lambda d: d | {"agent": d["agent"] | {"colour": 1}},
        lambda d: {k: v for k, v in d.items() if k != "env"},
        lambda d: d | {"agent": None},
    ],
)
def test_a_config_of_another_version_is_refused(break_it):
    with pytest.raises(UserError, match=r"config\.json does not fit this version.*--out"):
        from_dict(break_it(to_dict(DEBUG)))


def test_options_override_the_preset():
    config = parse(["--agent.horizon", "3", "--env.off-road-ends", "--seed", "7"], DEBUG)
    assert (config.agent.horizon, config.env.off_road_ends, config.seed) == (3, True, 7)
    assert changed(changed(config, "agent.horizon", 4), "seed", 0) == changed(
        DEBUG, "env.off_road_ends", True
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--colour", "red"], "--colour"),
        (["--batch", "many"], "many"),
        (["--cycle-unit", "hours"], "hours"),
        (["--agent.nothing", "1"], "--agent.nothing"),
    ],
)
def test_unknown_options_are_named(arguments, text, capsys):
    with pytest.raises(SystemExit) as left:
        parse(arguments, DEBUG)
    assert left.value.code == 2 and text in capsys.readouterr().err


def test_the_train_ratio_in_place_of_updates():
    """`DEBUG`: 3 sequences of 8 records after 40 decisions."""
    assert parse(["--train-ratio", "1.2"], DEBUG) == changed(DEBUG, "updates", 2)
    assert parse(["--train-ratio=0.7", "--cycle-size", "80"], DEBUG).updates == 2
    assert parse(["--train-ratio", "0.31"], DEBUG).updates == 1
    published = parse(["--train-ratio", "262"], FAMILY["dreamer_v3"]["paper"])
    assert published == FAMILY["dreamer_v3"]["paper"]
    assert "a train ratio of 262" in train_ratio.describe(published)
    assert "after every 1 episodes" in train_ratio.describe(PAPER)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--train-ratio", "many"], "--train-ratio many cannot be: use a number above 0"),
        (["--train-ratio", "nan"], "--train-ratio nan cannot be"),
        (["--train-ratio", "-1"], "--train-ratio -1 cannot be"),
        (["--train-ratio", "0.29"], "use more than 0.3,"),
        (["--train-ratio", "3", "--batch", "0"], "batch=0"),
        (["--train-ratio", "3", "--updates=5"], "leave one of them out"),
        (["--train-ratio=3", "--cycle-unit=episodes", "--cycle-size=1"], "add --cycle-unit steps"),
    ],
)
def test_train_ratios_that_cannot_be(arguments, text):
    with pytest.raises(UserError, match=re.escape(text)):
        parse(arguments, DEBUG)


def test_choose(monkeypatch):
    assert choose("debug") == (DEBUG, "preset debug")
    with pytest.raises(UserError, match="--preset nothing is unknown; use one of debug, laptop"):
        choose("nothing")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert choose(None)[0] is LAPTOP and "--preset paper" in choose(None)[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose(None)[0] is PAPER and "gpu" in choose(None)[1]


def test_defaults_are_the_published_settings():
    assert RunConfig() == PAPER
    assert (PAPER.cycle_unit, PAPER.cycle_size, PAPER.updates) == ("episodes", 1, 20)
    assert (PAPER.batch, PAPER.length, PAPER.agent.horizon, PAPER.agent.starts) == (50, 50, 15, 50)


PUBLISHED = {
    "dreamer_v1": {
        "free_nats": 3, "horizon": 15, "gamma": 0.99, "lambda_": 0.95, "exploration": 0.3,
        "model_lr": 6e-4, "actor_lr": 8e-5, "value_lr": 8e-5, "clip": 100, "deter": 200,
        "stoch": 30,
    },
    "dreamer_v2": {
        "latents": 32, "classes": 32, "kl_balance": 0.8, "kl_scale": 0.1, "horizon": 15,
        "gamma": 0.995, "lambda_": 0.95, "slow_every": 100, "model_lr": 2e-4, "actor_lr": 4e-5,
        "value_lr": 1e-4, "weight_decay": 1e-6, "clip": 100, "deter": 600,
    },
    "dreamer_v3": {
        "latents": 32, "unimix": 0.01, "bins": 255, "dyn_scale": 1, "rep_scale": 0.1,
        "free_nats": 1, "blocks": 8, "horizon": 15, "discount_horizon": 333, "lambda_": 0.95,
        "entropy_scale": 3e-4, "range_rate": 0.01, "slow_rate": 0.02, "slow_scale": 1,
        "replay_value_scale": 0.3, "norm": "rms", "optimiser": "laprop", "lr": 4e-5, "agc": 0.3,
        "warmup": 1000,
        "numbers": "two_hot", "stored_latents": True, "excess_scale": 0, "lr_anneal": 0,
    },
    "planet": {
        "free_nats": 3, "plan_horizon": 12, "iterations": 10, "candidates": 1000, "top": 100,
        "exploration": 0.3, "model_lr": 1e-3, "clip": 1000, "deter": 200, "stoch": 30,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_has_the_published_numbers(name):
    agent = FAMILY[name]["paper"].agent
    assert {setting: getattr(agent, setting) for setting in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", [*EPISODE_RULES, "env.steer_scale", "env.cars"])
def test_rules_of_the_races_are_for_the_races(name):
    """Elsewhere they would do nothing and yet stand in config.json."""
    config = for_env(FAMILY["dreamer_v3"]["debug"], "CartPole-v1")
    field = name.removeprefix("env.")
    default = getattr(config.env, field)
    other = not default if isinstance(default, bool) else 0.5 if field == "steer_scale" else 2
    option = re.escape("--" + name.replace("_", "-"))
    with pytest.raises(UserError, match=f"{option}={other} cannot be: .* not for CartPole-v1"):
        check(changed(replace(config, seeds="0:2"), name, other))
    assert check(config)


def test_a_sweep_over_what_nothing_uses_is_refused():
    sweep = replace(DEBUG, sweep=("generated.fraction=0,0.5",))
    assert check(replace(sweep, arm="ddim"))
    with pytest.raises(UserError, match=r"--sweep.* cannot be: with --arm=baseline nothing is"):
        check(replace(sweep, arm="baseline"))


def test_training_on_the_drivers_records_needs_some():
    shortest = replace(DEBUG, pretrain=1, prefill=DEBUG.envs * DEBUG.length)
    assert check(shortest)
    with pytest.raises(UserError, match=rf"--pretrain=1 .* --prefill {shortest.prefill} or more"):
        check(replace(shortest, prefill=shortest.prefill - DEBUG.envs))
    assert check(replace(shortest, prefill=0, pretrain=0))


def test_prefill_ends_with_a_step_where_several_cars_race_whole_races():
    races = replace(DEBUG, seeds="0:2", cycle_unit="episodes", cycle_size=2, replay=9000)
    races = replace(races, env=replace(DEBUG.env, cars=2))
    with pytest.raises(UserError, match=r"--prefill=80 .*--prefill 0 or --cycle-unit steps"):
        check(races)
    assert check(replace(races, prefill=0)) and check(replace(races, cycle_unit="steps"))


@pytest.mark.parametrize(
    ("agent", "name", "value"),
    [
        ("dreamer_v3", "agent.encoder", ((32, 1, 0),)),
        ("planet", "agent.decoder", ((64, 2, 2), (32, 0, 2))),
        ("dreamer_v1", "agent.decoder_base", (2, 0)),
        ("dlc_v1", "agent.decoder", ()),
        ("dreamer_v3", "eval_episodes", 5001),
    ],
)
def test_layers_without_size_and_more_episodes_than_seeds(agent, name, value):
    option = re.escape("--" + name.replace("_", "-"))
    with pytest.raises(UserError, match=f"{option}=.* cannot be"):
        check(changed(FAMILY[agent]["debug"], name, value))


def test_what_the_other_optimiser_alone_has():
    first = FAMILY["dreamer_v3"]["2023"]
    assert check(changed(first, "agent.lr_anneal", 50))  # its step sizes do not rise first
    with pytest.raises(UserError, match=r"--sweep.* cannot be: .*adam .*agent\.agc"):
        check(replace(first, sweep=("agent.agc=0.1,0.3",)))


def test_bins_count_where_they_are_used():
    even = changed(FAMILY["dreamer_v3"]["debug"], "agent.bins", 2)
    with pytest.raises(UserError, match=r"--agent\.bins=2 cannot be"):
        check(even)
    assert check(changed(even, "agent.numbers", "gaussian"))


def test_the_step_size_falls_only_after_it_has_risen():
    with pytest.raises(UserError, match=r"--agent\.lr-anneal=50 cannot be: use 0 or more"):
        check(changed(FAMILY["dreamer_v3"]["debug"], "agent.lr_anneal", 50))


def test_a_run_that_goes_on_may_take_longer():
    words = "--cycles 99 --report-every 0 --eval-every 7 --eval_episodes 2 --env.timeout 30"
    got = with_changes(DEBUG, [*words.split(), "--checkpoint-every", "1", "--keep", "9"])
    want = changed(changed(DEBUG, "cycles", 99), "env.timeout", 30.0)
    for name, value in zip(CHANGEABLE[2:7], (0, 7, 2, 1, 9), strict=True):
        want = changed(want, name, value)
    assert got == want
    assert with_changes(DEBUG, []) is DEBUG


def test_a_run_that_goes_on_may_have_other_episodes():
    ways = changed(DEBUG, "env.both_ways", True)
    got = with_changes(ways, ["--env.no-both-ways", "--env.missed-cost=5", "--env.idle-limit", "0"])
    assert got == changed(changed(DEBUG, "env.missed_cost", 5.0), "env.idle_limit", 0)
    assert episode_rules(got) != episode_rules(DEBUG) != episode_rules(ways)
    longer = with_changes(DEBUG, ["--cycles", "9", "--env.timeout", "9"])
    assert episode_rules(longer) == episode_rules(DEBUG)


def test_the_replay_may_grow_but_not_shrink():
    more = str(DEBUG.replay + 100)
    assert with_changes(DEBUG, ["--replay", more]) == changed(DEBUG, "replay", int(more))
    with pytest.raises(UserError, match=r"--replay=300: .* can only grow"):
        with_changes(changed(DEBUG, "replay", 400), ["--replay", "300"])


@pytest.mark.parametrize(
    "words",
    [
        *("--seed 7", "--seeds 0:3", "--agent.lr 1", "--env.id CartPole-v1", "--overlap"),
        *("--precision bfloat16", f"--batch {DEBUG.batch}"),  # also where it is the run's own
    ],
)
def test_a_run_that_goes_on_learns_as_before(words):
    preset = FAMILY["dreamer_v3"]["debug"]
    with pytest.raises(UserError, match=f"leave out {re.escape(words)}"):
        with_changes(preset, ["--cycles", "99", *words.split()])


def test_a_run_that_goes_on_needs_possible_settings():
    with pytest.raises(UserError, match="--cycles=0"):
        with_changes(DEBUG, ["--cycles", "0"])
