"""Several cars on one track: training from the command line, and contests of trained drivers."""

import json
import shutil

import numpy as np
import pytest
from logged import lines, set_cycles, updates

from dreamer_jax.training import contest
from dreamer_jax.training.command import assess, compete, race, race_many, with_cars
from dreamer_jax.training.contest import ContestConfig, Raced, judge, load_drivers
from envs.vector import VectorEnv

pytestmark = pytest.mark.usefixtures("compiled_once")
OPTIONS = ["--preset", "debug", "--arm", "baseline", "--prefill", "60", "--eval-every", "0"]
OPTIONS += ["--report-every", "0", "--env.time-limit", "80"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two cars, three cycles."""
    folder = tmp_path_factory.mktemp("cars") / "pair"
    given = ["--cars", "2", "--seed", "3", "--cycles", "3", "--out", str(folder)]
    assert race_many([*OPTIONS, *given]) == 0
    return folder


def test_cars_are_learners():
    assert with_cars(["--cars", "3", "--seed", "4", "--batch", "8"]) == [
        *("--batch", "8", "--env.cars", "3", "--seeds", "4,5,6")
    ]
    assert with_cars([])[-4:] == ["--env.cars", "2", "--seeds", "0,1"]
    assert with_cars(["--seeds", "0:8"])[-4:] == ["--env.cars", "2", "--seeds", "0:8"]
    assert with_cars(["--resume", "runs/x"]) == ["--resume", "runs/x"]


def test_each_car_has_its_own_curve_and_trains(pair):
    curves = []
    for seed in (3, 4):
        records = lines(pair / f"seed_{seed}")
        assert sum("loss/actor" in record for record in records) == 3
        curves.append([r["episode/return"] for r in records if "episode/return" in r])
        assert len(curves[-1]) >= 3
    assert curves[0] != curves[1]
    assert (pair / "return.png").exists()


def test_a_stopped_race_goes_on_as_if_it_had_not_been(pair, tmp_path):
    folder = tmp_path / "run"
    given = ["--cars", "2", "--seed", "3", "--cycles", "2", "--out", str(folder)]
    assert race_many([*OPTIONS, *given]) == 0
    set_cycles(folder, 3)
    assert race_many(["--resume", str(folder)]) == 0
    for seed in (3, 4):
        want, got = (updates(f / f"seed_{seed}") for f in (pair, folder))
        np.testing.assert_equal(got, want)


def test_one_car_is_the_single_race(tmp_path):
    given = [*OPTIONS, "--cycles", "1"]
    assert race_many([*given, "--cars", "1", "--seed", "3", "--out", str(tmp_path / "a")]) == 0
    assert race([*given, "--seed", "3", "--out", str(tmp_path / "b")]) == 0
    np.testing.assert_equal(lines(tmp_path / "a"), lines(tmp_path / "b"))


def test_evaluation_is_alone_on_the_track(pair, capsys):
    assert assess([str(pair), "--episodes", "1"]) == 0
    assert "seed 3, 1 held-out" in capsys.readouterr().out


def test_who_wins_by_hand():
    returns = np.array([[[5.0, 1.0], [3.0, 3.0]], [[2.0, 4.0], [3.0, 1.0]]])
    laps = returns > 4
    result = judge(Raced(returns, laps, returns / 10, np.zeros((1, 2, 2))))
    # driver 0: won, lost | shared, won
    assert result["drivers"][0]["wins"]["mean"] == pytest.approx(2.5 / 4)
    assert result["drivers"][1]["wins"]["mean"] == pytest.approx(1.5 / 4)
    assert result["beats"][0][1]["mean"] == pytest.approx(2.5 / 4)
    assert result["drivers"][0]["wins"]["low"] == pytest.approx(0.5)  # track 0 twice
    assert result["drivers"][0]["wins"]["high"] == pytest.approx(0.75)
    assert result["drivers"][0]["return"]["mean"] == 3.0 and result["drivers"][0]["laps"] == 0.25


def test_against_itself_a_driver_wins_half_of_the_races(pair):
    """With the seats changed, the same race has the names changed, exactly."""
    drivers = load_drivers([f"{pair}:4", f"{pair}:4@3"])
    raced = contest.contest(drivers, ContestConfig(tracks=2))
    assert raced.returns.shape == (2, 2, 2) and np.ptp(raced.returns) > 0
    np.testing.assert_array_equal(raced.returns[0], raced.returns[1][:, ::-1])
    np.testing.assert_array_equal(raced.progress[0], raced.progress[1][:, ::-1])
    assert judge(raced)["drivers"][0]["wins"]["mean"] == 0.5


def test_any_number_of_tracks_is_raced_side_by_side(pair, monkeypatch):
    """A last group that is smaller changes nothing."""
    drivers, config = load_drivers([str(pair)]), ContestConfig(tracks=3, first_track=5)
    at_once = []

    def vector(make, seeds, **options):
        at_once.append(len(seeds))
        return VectorEnv(make, seeds, **options)

    monkeypatch.setattr(contest, "VectorEnv", vector)
    results = []
    for parallel in (2, 4):  # one track from both seatings, two tracks
        monkeypatch.setattr(contest, "PARALLEL", parallel)
        results.append(contest.contest(drivers, config))
    assert at_once == [2, 4]
    alone, together = results
    assert together.returns.shape == (2, 3, 2) and np.unique(alone.returns).size > 2
    for name in ("returns", "laps", "progress"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), err_msg=name)
    np.testing.assert_allclose(together.actions, alone.actions, atol=1e-3)


def test_a_contest_from_the_command_line(pair, capsys):
    assert compete([str(pair), "--tracks", "1", "--first-track", "7"]) == 0
    out = capsys.readouterr().out
    assert "2 races on 1 held-out tracks" in out and "pair seed 3 cycle 3: wins" in out
    result = json.loads((pair / "contest" / "contest.json").read_text())
    assert result["races"] == 2 and result["first_track"] == 7
    assert sum(driver["wins"]["mean"] for driver in result["drivers"]) == pytest.approx(1)
    assert (pair / "contest" / "contest.mp4").stat().st_size > 5000
    assert "(no interval), laps" in out  # over one track there is none


def test_a_contest_is_not_written_over(pair, tmp_path, monkeypatch, capsys):
    pair = shutil.copytree(pair, tmp_path / "pair", ignore=shutil.ignore_patterns("contest*"))
    (pair / "contest").mkdir()
    (pair / "contest" / "contest.json").write_text("kept")
    two = np.array([[[1.0]], [[2.0]]])
    raced = Raced(two, two > 0, two, np.zeros((0, 2, 2)))
    monkeypatch.setattr(contest, "contest", lambda *_: raced)
    monkeypatch.setattr(contest, "film", lambda *_: None)
    words = [f"{pair}:3", f"{pair}:4", "--tracks", "1"]
    assert compete(words) == 0 and compete([*words, "--out", str(tmp_path / "x")]) == 0
    assert (pair / "contest" / "contest.json").read_text() == "kept"
    assert json.loads((pair / "contest-2" / "contest.json").read_text())["races"] == 2
    assert compete([*words, "--out", str(tmp_path / "x")]) == 2
    assert "holds a contest; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "0 drivers given"),
        (["{}:4"], "1 drivers given"),
        (["{}:7", "{}:4"], "no learner with seed 7, only 3, 4"),
        (["{}", "{}@99"], "no checkpoint of step 99"),
        (["{}/nowhere", "{}"], "nowhere"),
        (["{}", "--tracks", "0"], "--tracks=0 cannot be"),
        (["{}", "--first-track", "9999"], "--first-track=9999 cannot be"),
    ],
)
def test_contests_that_cannot_be(words, text, pair, capsys):
    assert compete([word.replace("{}", str(pair)) for word in words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--cars", "2", "--seeds", "0:3"], "--env.cars=2 cannot be"),
        (
            ["--cars", "2", "--seeds", "0:3", "--sweep", "entropy_scale=0.01,1"],
            "there are 3 seeds",
        ),
        (["--cars", "9"], "--env.cars=9 cannot be"),
        (["--cars", "two"], "--cars=two"),
    ],
)
def test_cars_that_cannot_be(words, text, tmp_path, capsys):
    assert race_many([*OPTIONS, *words, "--out", str(tmp_path / "x")]) == 2
    assert text in capsys.readouterr().err
