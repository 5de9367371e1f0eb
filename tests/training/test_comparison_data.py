"""What a comparison reads: run folders as training leaves them, and its own CSV files."""

import json
import re

import numpy as np
import pytest

from dreamer_jax.errors import UserError
from dreamer_jax.training.comparison import SeedRun, compare_groups
from dreamer_jax.training.comparison_csv import read_csv, write_curves, write_held_out
from dreamer_jax.training.comparison_data import (
    differing,
    parse_groups,
    read_group,
    read_run,
    task_of,
    warnings_about,
)


def run(returns, frames, seed=0, **more):
    return SeedRun(seed, np.asarray(frames), np.asarray(returns, float), **more)


def group(*levels):
    """Runs of constant returns, one per level."""
    frames = 100 * np.arange(1, 21)
    return [run([level] * 20, frames, seed) for seed, level in enumerate(levels)]


CONFIG = {"arm": "baseline", "cycles": 4, "env": {"action_repeat": 4}, "out": "x"}


def write_run(path, returns=(1.0, 2.0), seed=0, done=4, config=CONFIG, evaluation=None):
    """A run's folder as training leaves it."""
    path.mkdir(parents=True)
    lines = [
        {"step": 100 * n, "episode/return": value, "episode/frames_total": 100.0 * n}
        for n, value in enumerate(returns, 1)
    ]
    lines += [{"step": 100 * n, "train/cycle": n, "eval/return": 7.0} for n in range(1, done + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config | {"seed": seed}))
    if evaluation is not None:
        (path / "evaluation.json").write_text(json.dumps({str(seed): evaluation}))
    return path


EVALUATION = {"returns": [5.0, 7.5], "first_track": 30, "cycle": 4}


def test_read_run(tmp_path):
    found = read_run(write_run(tmp_path / "run", [3.0, -1.5], seed=6, evaluation=EVALUATION))
    assert found.seed == 6 and found.frames.tolist() == [100, 200]
    assert found.returns.tolist() == [3.0, -1.5] and found.finished and not found.early
    assert found.tracks.tolist() == [30, 31] and found.held_out.tolist() == [5.0, 7.5]
    assert found.settings == {"arm": "baseline", "cycles": 4, "env.action_repeat": 4}


def test_seeds_may_be_one(tmp_path):
    folder = write_run(tmp_path / "run", config=CONFIG | {"seeds": "6"}, evaluation=None)
    (folder / "evaluation.json").write_text(json.dumps({"6": EVALUATION}))
    found = read_run(folder)
    assert found.seed == 6 and found.held_out.tolist() == [5.0, 7.5]


def test_a_folder_of_many_seeds_counts_as_several(tmp_path):
    for seed in (10, 2):
        write_run(tmp_path / f"seed_{seed}", [seed], seed=seed, config=None)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"seed": 2}))
    both = {"2": EVALUATION, "10": EVALUATION | {"returns": [1.0, 1.0]}}
    (tmp_path / "evaluation.json").write_text(json.dumps(both))
    runs = read_group("a", [str(tmp_path)])
    assert [r.seed for r in runs] == [2, 10] and [r.returns[0] for r in runs] == [2, 10]
    assert [r.held_out.sum() for r in runs] == [12.5, 2.0]
    assert runs[0].settings["cycles"] == 4 and read_group("a", [str(tmp_path / "seed_2")])


def test_seeds_of_several_hosts_are_one_group(tmp_path):
    """The last host has one alone, which logs into the host's folder."""
    for host, seed in ((0, 1), (1, 0), (1, 3)):
        write_run(tmp_path / f"host_{host}" / f"seed_{seed}", seed=seed, config=None)
    write_run(tmp_path / "host_2", seed=2)
    assert [r.seed for r in read_group("a", [str(tmp_path)])] == [0, 1, 2, 3]
    (tmp_path / "host_3").mkdir()
    with pytest.raises(UserError, match="host_3 is no run"):
        read_group("a", [str(tmp_path)])


def test_a_folder_may_have_commas_in_its_name(tmp_path):
    """As that of a setting of a --sweep."""
    first, other = tmp_path / "actor_lr=0.1,gamma=0.9", tmp_path / "other"
    groups = parse_groups([f"a={other}, {first},{tmp_path}/none"])
    assert groups["a"] == [
        str(other),
        f"{first.parent}/actor_lr=0.1",
        "gamma=0.9",
        f"{tmp_path}/none",
    ]
    write_run(first, seed=3)
    groups = parse_groups([f"a={other}, {first},{tmp_path}/none"])
    assert groups["a"] == [str(other), str(first), f"{tmp_path}/none"]
    many = [f"car_racing-laptop-seed{n}-20250101-120000" for n in range(200)]  # too long a name
    assert parse_groups(["a=" + ",".join(many)])["a"] == many


def test_a_learner_without_episodes_is_trained_on_where_its_run_is(tmp_path):
    write_run(tmp_path / "seed_1", [], config=None)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"seed": 0}))
    with pytest.raises(UserError, match=r"leave it out$"):  # nothing to go on from
        read_run(tmp_path / "seed_1")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=rf"train it on with .* --resume {tmp_path}$"):
        read_run(tmp_path / "seed_1")


def test_a_learner_that_stopped_is_warned_of(tmp_path):
    lame = write_run(tmp_path / "run", evaluation=EVALUATION | {"stopped": True})
    (warning,) = warnings_about({"a": [read_run(lame)]})
    assert "ceased to be finite" in warning and str(lame) in warning


def test_held_out_returns_from_a_file_replace_those_of_the_run(tmp_path):
    """Nothing is known of how these were driven; the same seed in two files is one too many."""
    early = EVALUATION | {"cycle": 2}
    folder = write_run(tmp_path / "run", evaluation=early)
    assert warnings_about({"a": [read_run(folder)]})
    kept = tmp_path / "held.csv"
    write_held_out(kept, {"a": [run([1], [1], tracks=np.array([7]), held_out=np.array([9.0]))]})
    (found,) = read_group("a", [str(folder), str(kept)])
    assert found.held_out.tolist() == [9.0] and found.driven is None
    assert warnings_about({"a": [found]}) == []
    (tmp_path / "again.csv").write_text(kept.read_text())
    with pytest.raises(UserError, match=r"held-out returns of seed 0 twice.*again\.csv"):
        read_group("a", [str(folder), str(kept), str(tmp_path / "again.csv")])


def test_patterns(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"car-{seed}", seed=seed)
    assert [r.seed for r in read_group("a", [str(tmp_path / "car-*")])] == [0, 1]
    with pytest.raises(UserError, match="fits the pattern"):
        read_group("a", [str(tmp_path / "bus-*")])


def test_curves_survive_the_csv_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    frames = [5, 9, 9, 12, *range(20, 40)]
    tracks = np.arange(7, 10)
    groups = {
        name: [
            run(rng.normal(size=24) / 3, frames, s, held_out=rng.normal(size=3), tracks=tracks)
            for s in (0, 3)
        ]
        for name in ("a", "b, c")
    }
    write_curves(tmp_path / "curves.csv", groups)
    write_held_out(tmp_path / "tracks.csv", groups)
    files = [str(tmp_path / "curves.csv"), str(tmp_path / "tracks.csv")]
    again = {name: read_group(name, files) for name in groups}
    for name, runs in groups.items():
        for before, after in zip(runs, again[name], strict=True):
            for field in ("frames", "returns", "tracks", "held_out"):
                assert np.array_equal(getattr(before, field), getattr(after, field))
    assert compare_groups(again, 0.1).pairs == compare_groups(groups, 0.1).pairs
    header, first = (tmp_path / "curves.csv").read_text().splitlines()[:2]
    assert header == "group,seed,episode,frames,return" and first.startswith("a,0,1,5,")


def test_the_only_group_of_a_csv_may_be_called_otherwise(tmp_path):
    path = tmp_path / "curves.csv"
    write_curves(path, {"a": group(1)})
    assert read_group("old", [str(path)])[0].seed == 0
    write_curves(path, {"a": group(1), "b": group(2)})
    with pytest.raises(UserError, match="holds no group old but a, b"):
        read_csv(path, "old")


def test_what_a_reader_must_know(tmp_path):
    other = CONFIG | {"env": {"action_repeat": 8}}
    early = EVALUATION | {"first_track": 0, "cycle": 3}
    runs = [
        read_run(write_run(tmp_path / "0", evaluation=EVALUATION)),
        read_run(write_run(tmp_path / "1", seed=1, done=2)),
        read_run(write_run(tmp_path / "2", seed=2, config=other, evaluation=early)),
    ]
    assert differing(runs) == {"env.action_repeat": [4, 8]}
    texts = [
        f"{tmp_path}/1 (a) is not finished",
        f"the held-out episodes of {tmp_path}/2 (a) were driven before its last cycle",
        "a: no held-out episodes of seed 1",
        "a mixes settings: env.action_repeat is 4 or 8",
        "the runs do not share one task: env.action_repeat is 4 or 8",
        "the held-out episodes are not of the same tracks",
    ]
    found = warnings_about({"a": runs})
    assert len(found) == len(texts)
    assert all(line.startswith(text) for line, text in zip(found, texts, strict=True))
    assert warnings_about({"a": runs[:1], "b": group(1, 2)}) == []


def test_evaluations_of_other_kinds_are_told(tmp_path):
    ways = [{}, {"average": 9}, {"average": 1, "calm": True, "stock": False}]
    runs = [
        read_run(write_run(tmp_path / str(i), seed=i, evaluation=EVALUATION | way))
        for i, way in enumerate(ways)
    ]
    average, calm = warnings_about({"a": runs[:2], "b": runs[2:]})[::-1]
    assert calm.startswith("the held-out episodes were not driven alike: --calm is False or True")
    assert average.startswith("the held-out episodes were not driven alike: --average is 1 or 9")
    assert warnings_about({"a": [runs[0]]}) == []


def test_what_an_arm_does_not_read_is_no_difference(tmp_path):
    arms = {"baseline": 0.5, "ddim": 1.0}
    configs = [CONFIG | {"arm": a, "generated": {"fraction": f}} for a, f in arms.items()]
    runs = [read_run(write_run(tmp_path / str(i), config=c)) for i, c in enumerate(configs)]
    assert differing(runs) == {"arm": ["baseline", "ddim"]}
    old = read_run(write_run(tmp_path / "old", config=CONFIG))
    assert differing([old, runs[0]]) == {}


def test_an_unfinished_run_ends_all_curves(tmp_path):
    short = read_run(write_run(tmp_path / "short", [1.0] * 5, done=1))
    found = compare_groups({"a": [short], "b": group(1, 2)}, 500)
    assert found.grid[-1] == 500


def damaged(path, **files):
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: p, "is no run"),
        (lambda p: p / "missing", "missing is no run"),
        (lambda p: p / "x.csv", "cannot read"),
        (lambda p: write_run(p / "run", []), "holds no finished episode"),
        (lambda p: write_run(p / "run", ["nan"]), "a return that is no number"),
        (lambda p: write_run(p / "run", config=None), "cannot tell the seed"),
        (lambda p: damaged(write_run(p / "run"), config_json="{"), "config.json"),
        (lambda p: damaged(write_run(p / "run"), evaluation_json="[]"), "no JSON object"),
        (lambda p: damaged(write_run(p / "run"), evaluation_json='{"0": {}}'), "evaluate.py"),
        (lambda p: damaged(p, x_csv="a,b\n1,2\n") / "x.csv", "its columns are a, b"),
        (lambda p: damaged(p, x_csv="group,seed,track,return\na,0,1,5\n") / "x.csv", "no curve"),
        (
            lambda p: damaged(p, x_csv="group,seed,episode,frames,return\na,0,1,9.5,2\n") / "x.csv",
            "line 2: frames is '9.5'",
        ),
        (
            lambda p: damaged(p, x_csv="group,seed,episode,frames,return\na,0,1,9\n") / "x.csv",
            "line 2: return is 'None'",
        ),
    ],
)
def test_what_is_no_run_is_named(tmp_path, make, text):
    path = make(tmp_path)
    with pytest.raises(UserError, match=re.escape(text)):
        read_group("a", [str(path)])


def test_a_seed_folder_without_metrics_is_not_passed_over(tmp_path):
    write_run(tmp_path / "seed_0")
    (tmp_path / "seed_1").mkdir()
    with pytest.raises(UserError, match="seed_1 is no run"):
        read_group("a", [str(tmp_path)])


def test_a_seed_stands_once_in_a_group(tmp_path):
    names = [str(write_run(tmp_path / name)) for name in "ab"]
    with pytest.raises(UserError, match="seed 0 stands twice in group x"):
        read_group("x", names)


def test_groups_are_parsed():
    assert parse_groups(["a=x,y", "b=z"]) == {"a": ["x", "y"], "b": ["z"]}
    for words, text in [
        (["runs/a"], "'runs/a' is no group"),
        (["a="], "'a=' is no group"),
        (["=x"], "'=x' is no group"),
        (["a=x,,y"], "is no group"),
        (["a=x", "a=y"], "group a is named twice"),
    ]:
        with pytest.raises(UserError, match=text):
            parse_groups(words)


def test_the_figure_names_the_task():
    def run(**settings):
        return SeedRun(0, np.zeros(1), np.zeros(1), settings=settings or None)

    race, pole = {"env.id": "DreamerCarRacing-v3"}, {"env.id": "CartPole-v1"}
    assert task_of({"a": [run(**race)], "b": [run()]}) == "CarRacing-v3"
    assert task_of({"a": [run(**pole), run(**pole)]}) == "CartPole-v1"
    assert task_of({"a": [run(**pole)], "b": [run()]}) == "CartPole-v1"
    assert task_of({"a": [run()]}) == "CarRacing-v3"
    assert task_of({"a": [run(**pole)], "b": [run(**race)]}) == "CarRacing-v3 and CartPole-v1"
