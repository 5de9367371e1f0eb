"""By which rules a run is evaluated, and what is kept of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dreamer_jax.training import assess
from dreamer_jax.training.config import EnvConfig, to_dict
from dreamer_jax.training.evaluate import Played
from dreamer_jax.training.presets import DEBUG
from dreamer_jax.training.run_folder import RunFolder

STRICT = EnvConfig(action_repeat=8, idle_limit=80, off_road_ends=True, backwards_ends=True)


@pytest.mark.parametrize("stock", [False, True])
def test_stock_rules_replace_the_stricter_ones_alone(stock, tmp_path, monkeypatch):
    config, seen = replace(DEBUG, arm="baseline", env=STRICT, seed=3), []

    def play(path, config, options):
        seen.append(config)
        none, two = np.zeros((1, 2)), np.array([[5.0, 7.0]])
        return Played(two, none > 0, none, none, np.zeros((0, 1, 1, 3), np.uint8)), 9

    monkeypatch.setattr(assess, "play", play)
    with RunFolder.create(tmp_path / "run", "x") as folder:
        folder.save_config(to_dict(config))
    assess.assess_run(tmp_path / "run", assess.EvaluateConfig(episodes=2, stock=stock))
    stricter = not stock
    rules = replace(STRICT, off_road_ends=stricter, backwards_ends=stricter)
    assert seen == [replace(config, env=rules)]
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["3"]
    assert kept["returns"] == [5.0, 7.0] and kept["progress"] == kept["frames"] == [0.0, 0.0]
    assert kept["cycle"] == 9 and kept["stock"] is stock
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env"]["off_road_ends"]
