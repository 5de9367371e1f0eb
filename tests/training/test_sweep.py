"""Many learners on many machines: the plan, what is refused, and real groups on a local cluster."""

import dataclasses
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from logged import lines

from dreamer_jax.errors import UserError
from dreamer_jax.training import sweep as command_line
from dreamer_jax.training import sweep_group, sweep_ray
from dreamer_jax.training.command import parse
from dreamer_jax.training.comparison_data import read_group
from dreamer_jax.training.config import to_dict
from dreamer_jax.training.presets import DEBUG, DREAMER_V3
from dreamer_jax.training.run_folder import RunFolder
from dreamer_jax.training.sweep import SweepConfig, gather, plan_groups, take_up
from dreamer_jax.training.sweep_group import GroupRun, Job, next_arguments, progress, wait_for_lock
from dreamer_jax.training.sweep_options import unframed
from dreamer_jax.training.sweep_ray import Screen, describe, record

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BASELINE = ["--arm", "baseline"]


def plan(out, options=(), preset="debug", **settings):
    config = SweepConfig(out, **({"seeds": "0:5", "group": 2} | settings))
    return plan_groups(config, preset, [*BASELINE, *options], EXPERIMENTS)


def call(out, *words):
    return command_line.sweep(
        ["--out", str(out), *words], EXPERIMENTS, trained=lambda model: model == "laptop"
    )


# ---------------------------------------------------------------- the plan


def test_every_value_with_every_portion_of_the_seeds(tmp_path):
    sweep, vary = ("entropy_scale=0.01,1",), ("batch=4,6", "env.off_road_ends=true,false")
    groups = plan(tmp_path, ["--cycles", "9"], sweep=sweep, vary=vary)
    assert [g.name for g in groups] == [f"group_{k}" for k in range(12)]  # 2 x 2 values, 3 portions
    assert [g.seeds for g in groups[:3]] == [(0, 1) * 2, (2, 3) * 2, (4, 4)]
    assert {g.cycles for g in groups} == {9}
    second = groups[4]
    assert second.settings[0] == "batch=4,env.off_road_ends=false,entropy_scale=0.01"
    assert second.job.learners[3] == Path("entropy_scale=1", "seed_3")
    folder = tmp_path / "batch=4/env.off_road_ends=false/entropy_scale=1"
    assert second.targets[2:] == [folder / "seed_2", folder / "seed_3"]
    every = [target for group in groups for target in group.targets]
    assert len(set(every)) == len(every) == 5 * 2 * 4


def test_the_racing_script_knows_these_options(tmp_path):
    groups = plan(tmp_path, sweep=("gamma=0.9,0.99",), vary=("env.off_road_ends=true,false",))
    for group in [*groups, *plan(tmp_path, group=1, vary=("agent.lambda_=0.5,0.9",))]:
        assert group.job.arguments[:2] == ("--preset", "debug")
        config = parse(group.job.arguments[2:], DEBUG)
        assert json.loads(json.dumps(to_dict(config))) == group.job.config
        assert [m.seed for m in config.members] == list(group.seeds)


def test_any_agent(tmp_path):
    """With the settings of its own preset."""
    config = SweepConfig(tmp_path, "0:2", sweep=("agent.lr=1e-4,3e-4",))
    (first, _) = plan_groups(config, "debug", ["--cycles", "9"], EXPERIMENTS, "dreamer_v3")
    assert first.job.arguments[:4] == ("--preset", "debug", "--agent", "dreamer_v3")
    own = dataclasses.replace(DREAMER_V3["debug"], cycles=9, seed=0, sweep=config.sweep)
    assert first.job.config == json.loads(json.dumps(to_dict(own)))


def test_cars_of_a_sweep_are_the_seeds_of_its_groups(tmp_path):
    cars = ["--env.cars", "2", "--prefill", "0", "--pretrain", "0"]
    groups = plan(tmp_path, cars, seeds="0:4")
    assert [group.seeds for group in groups] == [(0, 1), (2, 3)]
    with pytest.raises(UserError, match=r"--env.cars=2 cannot be: .* there are 1 seeds"):
        plan(tmp_path, cars, seeds="0:3")


def test_one_learner_logs_into_its_run_folder(tmp_path):
    alone, *_, last = plan(tmp_path, group=1)
    assert alone.job.learners == (Path(),) and last.targets == [tmp_path / "seed_4"]
    assert last.job.arguments[-2:] == ("--seed", "4") and last.job.config["seed"] == 4
    one, other = plan(tmp_path, seeds="7", sweep=("gamma=0.9,0.99",))[0].job.learners
    assert (one, other) == (Path("gamma=0.9/seed_7"), Path("gamma=0.99/seed_7"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 0:2 --group 0", "--group=0 cannot be: use 1 or more"),
        ("--seeds 0:2 --retries -1", "--retries=-1 cannot be"),
        ("--seeds 0:2 --cpus 0", "--cpus=0 cannot be"),
        ("--seeds 0:2 --gpus 1.5", "--gpus=1.5 cannot be: above 1 use whole numbers"),
        ("--seeds 2:0", "--seeds=2:0 cannot be"),
        ("--seeds 0:2 -- --foo 3", "car_racing.py does not take these options: Unrecognized"),
        ("--seeds 0:2 -- --batch many", "these options: Error parsing --batch: invalid"),
        ("--seeds 0:2 -- --preset huge", "--preset huge is unknown"),
        ("--seeds 0:2 -- --cycles 0 --arm baseline", "--cycles=0 cannot be"),
        ("--seeds 0:2 -- --resume runs/x", "--resume after -- cannot be"),
        ("--seeds 0:2 -- --seed=3", "--seed after -- cannot be"),
        ("--seeds 0:2 --sweep deter=4,8", "deter cannot be swept inside one program"),
        ("--seeds 0:2 --vary batch", "write different values, as batch=8,16"),
        ("--seeds 0:2 --vary batch=8,8", "write different values"),
        ("--seeds 0:2 --vary batch=0,8", "--batch=0 cannot be"),
        ("--seeds 0:2 --vary wheels=3,4", "these options: Unrecognized options: --wheels"),
        ("--seeds 0:2 --vary seed=3,4", "--seed in --vary cannot be"),
        ("--seeds 0:2 --vary batch=8,16 batch=4", "batch is set already"),
        ("--seeds 0:2 --vary batch=8,16 -- --batch 3", "batch is set already"),
        ("--seeds 0:2 --vary agent.gamma=0,1 --sweep gamma=0,1", "agent.gamma is set already"),
        ("--seeds 0:2 --gpus 1", "--ddim=paper is not trained yet"),
        ("--seeds 0:2 --vary agent=planet,dreamer_v3", "each agent has settings of its own"),
        ("--seeds 0:2 -- --agent dreamer_v9", "--agent dreamer_v9 is unknown"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, message, tmp_path, capsys):
    assert call(tmp_path / "x", *words.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "frame",
    [
        "╭─ Title ──────╮\n│ No --foo,    │\n│ --bar        │\n│ ──────────── │\n│ x │\n╰───╯",
        " Title        \n--------------\n No --foo,    \n --bar        \n--------------\n x",
        "╭─ Title ──────╮\n│ No --foo,    │\n│ --bar        │\n╰──────────────╯",
    ],
)
def test_a_framed_message_becomes_one_line(frame):
    assert unframed(frame) == "No --foo, --bar"


def test_a_diffusion_model_that_every_group_would_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = runpy.run_path(str(EXPERIMENTS / "sweep.py"))["trained"]
    assert trained("laptop") and trained("runs/mine") and not trained("paper")
    (tmp_path / "runs" / "ddim-paper").mkdir(parents=True)
    (tmp_path / "runs" / "ddim-paper" / "weights.npz").touch()
    assert trained("paper")


def test_ray_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call(tmp_path / "x", "--seeds", "0:2", "--", *BASELINE) == 2
    assert "pip install 'dreamer-jax[sweep]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:1", "write auto, or HOST:PORT"),
        ("127.0.0.1:1", "cannot reach the Ray cluster at 127.0.0.1:1"),
    ],
)
def test_a_cluster_that_is_not_there(address, message, tmp_path, capsys):
    pytest.importorskip("ray")
    words = ["--seeds", "0:2", "--address", address, "--", *BASELINE]
    assert call(tmp_path / "x", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_group_that_fits_nowhere(capsys):
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}]
    sweep_ray._see_that_a_group_fits(nodes, 2, 0.5)
    assert "room for 2 groups at once on 2 machine" in capsys.readouterr().out
    for cpus, gpus in ((9, 0), (1, 2)):
        with pytest.raises(UserError, match=f"--cpus={cpus} --gpus={gpus} cannot be.*wait for"):
            sweep_ray._see_that_a_group_fits(nodes, cpus, gpus)


# ---------------------------------------------------------------- the folder


def keep(out, groups, **plan):
    entries = [record(group) for group in groups]
    (out / "sweep.json").write_text(json.dumps({"plan": plan, "groups": entries}))


def test_results_are_gathered_as_runs_of_their_own(tmp_path):
    group = plan(tmp_path, sweep=("entropy_scale=0.01,1",))[1]
    line = {"step": 9, "episode/frames_total": 9, "episode/return": 1.0}
    logged = [{"metrics.jsonl": json.dumps(line).encode(), "events.out.tfevents.1": b"x"}] * 4
    for _ in range(2):  # what was gathered before is replaced
        gather(group, logged)
    folder = tmp_path / "entropy_scale=1"
    assert sorted(path.name for path in folder.iterdir()) == ["seed_2", "seed_3"]
    assert (folder / "seed_3" / "events.out.tfevents.1").read_bytes() == b"x"
    config = json.loads((folder / "seed_3" / "config.json").read_text())
    assert (config["seed"], config["seeds"], config["sweep"]) == (3, None, [])
    assert config["agent"]["entropy_scale"] == 1.0 and config["batch"] == DEBUG.batch
    assert [run.seed for run in read_group("x", [str(folder)])] == [2, 3]


def test_the_same_command_goes_on_where_it_stopped(tmp_path):
    groups = plan(tmp_path)
    for group in groups:
        group.state, group.retries = "finished", 2
        group.attempts = [{"host": "a", "node": "n", "worker": 1, "pid": 2, "seconds": 1.5}]
    gather(groups[0], [{"metrics.jsonl": b""}] * 2)
    groups[2].state = "running"
    keep(tmp_path, groups, seeds="0:5")
    again = plan(tmp_path)
    take_up(tmp_path, {"seeds": "0:5"}, again)
    assert [g.state for g in again] == ["finished", "waiting", "waiting"]  # 1 was not gathered
    assert [g.retries for g in again] == [2] * 3 and record(again[0])["seconds"] == 1.5
    with pytest.raises(UserError, match=r"started with seeds 0:5, not with seeds 0:6"):
        take_up(tmp_path, {"seeds": "0:6"}, again)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read"):
        take_up(tmp_path, {"seeds": "0:5"}, again)


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path, capsys):
    pytest.importorskip("ray")
    words = ["--seeds", "0:2", "--", *BASELINE]
    with RunFolder.create(tmp_path / "used", "x"):
        assert call(tmp_path / "used", *words) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert call(tmp_path / "run", *words) == 2
    assert "already holds a run" in capsys.readouterr().err
    (tmp_path / "lost" / "group_0").mkdir(parents=True)
    assert call(tmp_path / "lost", *words) == 2
    assert "groups without their sweep.json" in capsys.readouterr().err


def test_what_a_terminal_shows(tmp_path, monkeypatch, capsys):
    group, other, _ = plan(tmp_path)
    assert describe(group).split() == ["group_0", "waiting"]
    group.state, group.retries, group.message = "running", 1, "killed by SIGKILL"
    group.status = sweep_group.Status("vm", "n", 1, 2, 3.0, None, "", 2, 4000, 31.25)
    text = "group_0 retry 1 cycle 2/3 4,000 frames return 31.2 on vm (killed by SIGKILL)"
    assert describe(group).split() == text.split()
    screen = Screen()
    screen.show([group, other])
    screen.show([group, other])  # nothing has changed
    other.state = "running"
    screen.show([group, other])
    assert len(capsys.readouterr().out.splitlines()) == 3
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 4)))
    screen = Screen()
    for _ in range(2):
        screen.show([other, group, *plan(tmp_path)])
    assert terminal.getvalue().count("... and 4 more groups") == 2
    assert "\x1b[2F\x1b[J" in terminal.getvalue()


# ---------------------------------------------------------------- a group on its machine


def job(folder, script, **changes):
    values = {"folder": folder, "script": script, "arguments": ("--cycles", "3"), "config": {}}
    values |= {"learners": (Path(),), "cpus": 2, "gpus": 0, "cwd": folder.parent, "groups": 9}
    return Job(**(values | changes))


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_group, "TAIL_BYTES", 2000)
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        with (tmp_path / str(seed) / "metrics.jsonl").open("w") as file:
            for n in range(100):
                entry = {"step": 10 * n + seed, "episode/return": n + seed, "train/cycle": n}
                file.write(json.dumps(entry) + "\n")
            file.write('{"step": 9999, "episode/ret')  # being written
    missing = tmp_path / "2"
    assert progress([tmp_path / "0", tmp_path / "1", missing]) == (99, 990, 95.0)
    assert progress([missing]) == (0, 0, None)


def test_a_run_goes_on_from_a_checkpoint_and_else_begins_anew(tmp_path):
    run = job(tmp_path / "group_0", tmp_path, config={"batch": 3, "agent": {"deter": 5}})
    begin = ["--cycles", "3", "--out", str(run.folder)]
    assert next_arguments(run) == begin
    (run.folder / "checkpoints" / ".tmp-00000001-7").mkdir(parents=True)
    (run.folder / "config.json").write_text('{"batch": 3, "out": "elsewhere"}')
    assert next_arguments(run) == begin and not run.folder.exists()
    (run.folder / "checkpoints" / "00000001").mkdir(parents=True)
    (run.folder / "config.json").write_text('{"batch": 3, "out": "elsewhere"}')
    assert next_arguments(run) == ["--resume", str(run.folder)]
    (run.folder / "config.json").write_text('{"batch": 4, "agent": {"deter": 6, "new": 1}}')
    with pytest.raises(UserError, match=r"holds a run of other settings \(agent.deter, batch\)"):
        next_arguments(run)


def test_what_may_pass_is_tried_again(tmp_path, monkeypatch):
    """A folder that a lost machine still holds, a process that cannot be started now."""
    monkeypatch.setattr(sweep_group, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(sweep_group, "_node", lambda: "x")
    held = RunFolder.create(tmp_path / "group_0", "x")
    assert GroupRun(job(held.path, tmp_path)).start().code == sweep_group.TRY_AGAIN
    held.close()

    def fail(*_):
        raise BlockingIOError("not now")

    monkeypatch.setattr(sweep_group, "_start", fail)
    status = GroupRun(job(tmp_path / "group_1", tmp_path)).start()
    assert status.code == sweep_group.TRY_AGAIN and "cannot start a process" in status.message


def test_a_group_waits_for_the_lock(tmp_path):
    wait_for_lock(tmp_path / "missing", 0)
    held = RunFolder.create(tmp_path / "run", "x")
    with pytest.raises(UserError, match="is in use by process"):
        wait_for_lock(held.path, 0.2)
    held.close()
    wait_for_lock(held.path, 0)


def test_a_group_stays_within_its_share(tmp_path):
    of = {g: sweep_group.environment(job(tmp_path, tmp_path, gpus=g)) for g in (0, 0.5, 1)}
    assert of[0] == {"JAX_PLATFORMS": "cpu", "NPROC": "2"}
    assert of[0.5] == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} and of[1] == {}


def test_groups_of_one_machine_share_its_memory(tmp_path):
    """Each plans its replay alone: in all no more than there is."""
    node = {"CPU": 8.0, "memory": 6e9, "object_store_memory": 2e9}
    of_two, alone = (job(tmp_path, tmp_path, cpus=c) for c in (2, 16))
    assert sweep_group.memory(of_two, node) == {"DREAMER_JAX_MEMORY": "2000000000"}
    assert sweep_group.memory(alone, node) == {"DREAMER_JAX_MEMORY": "8000000000"}
    assert sweep_group.memory(of_two, {}) == {}
    few = job(tmp_path, tmp_path, cpus=1, groups=2)  # no more than these can begin at once
    assert sweep_group.memory(few, node) == {"DREAMER_JAX_MEMORY": "4000000000"}
    parts = {g: sweep_group.memory(job(tmp_path, tmp_path, gpus=g), node) for g in (0.25, 1, 2)}
    assert parts == {0.25: {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.23"}, 1: {}, 2: {}}


def alive(pid):
    """Whether the process runs; one that is dead and not yet fetched does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_run_dies_with_its_worker(tmp_path):
    script, answer = tmp_path / "car_racing.py", tmp_path / "pid"
    script.write_text("import time; time.sleep(60)")
    code = f"""
import os, time
from pathlib import Path
from dreamer_jax.training import sweep_group
sweep_group._node = str
job = sweep_group.Job(Path({str(tmp_path / "g")!r}), Path({str(script)!r}), (), {{}}, (), 1, 0,
                      Path({str(tmp_path)!r}))
run = sweep_group.GroupRun(job)
Path({str(answer)!r}).write_text(str(run.start().pid) + " ")
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as worker:
        wait_until(lambda: answer.exists() and answer.read_text().endswith(" "))
        run = int(answer.read_text())
        assert alive(run)
        worker.kill()
    wait_until(lambda: not alive(run), 10)


def test_a_machine_without_the_script(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_group, "_node", str)
    run = GroupRun(job(tmp_path / "g", tmp_path / "nothing.py"))
    status = run.start()
    assert status.code == 2 and "put the repository there" in status.message
    assert run.start().message == status.message  # it is not tried again
    (tmp_path / "file").write_text("")
    status = GroupRun(job(tmp_path / "file" / "g", tmp_path)).start()
    assert status.code == 2 and "cannot write" in status.message


# ---------------------------------------------------------------- on a cluster

# What befalls a run depends on its seed: 1 breaks for good, 2 is killed once, 3 fails till `cured`
# exists, 4 waits for a signal till then.
FAKE = """
    import json, os, shutil, signal, sys, time
    from pathlib import Path

    here, words = Path(__file__).parent, sys.argv[1:]
    folder = Path(words[words.index("--out" if "--out" in words else "--resume") + 1])
    with open(here / "calls", "a") as calls:
        print(folder.name, *words[:1], file=calls)
    with open(here / "memory", "a") as memory:
        print(os.environ["DREAMER_JAX_MEMORY"], file=memory)
    seed, cured = int(folder.name[-1]), (here / "cured").exists()

    def save():
        (folder / "checkpoints" / "00000001").mkdir(parents=True, exist_ok=True)
        shutil.copy(here / f"config_{seed}.json", folder / "config.json")

    if seed == 1:
        sys.exit("error: no memory for that" if cured else print("error: --x cannot be") or 2)
    if seed == 2 and "--resume" not in words:
        save()
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 3 and not cured:
        sys.exit("error: the disk")
    if seed == 4 and not cured:
        def leave(number, frame):
            save()
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, leave)
        (here / "started").touch()
        time.sleep(120)
    save()
    lines = [{"step": n, "episode/return": n, "episode/frames_total": n} for n in range(3)]
    lines += [{"step": 3, "train/cycle": 3}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\\n" for x in lines))
"""


@pytest.fixture(scope="module")
def ray_settings(tmp_path_factory):
    """Ray's own files go to a place of their own, whose name must be short."""
    pytest.importorskip("ray")
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0" * 32)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(ray_settings):
    """The address of a cluster with room for two groups."""
    code = "import ray, sys; c = ray.init('local', num_cpus=2, include_dashboard=False); "
    code += "print(c.address_info['gcs_address'], flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    settings = os.environ | ray_settings | {"RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen([sys.executable, "-c", code], env=settings, text=True, **pipes) as ray:
        yield ray.stdout.readline().strip()
        ray.stdin.close()


@contextmanager
def started(scripts, settings, *words):
    """The sweep as a process."""
    command = [sys.executable, str(scripts / "sweep.py"), *map(str, words)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | settings, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def kept(out):
    return json.loads((out / "sweep.json").read_text())["groups"]


def test_what_befalls_groups_on_a_cluster(cluster, ray_settings, tmp_path):
    """Users' errors are final, deaths are not; after Ctrl-C the same command goes on."""
    scripts, out = tmp_path / "scripts", tmp_path / "out"
    scripts.mkdir()
    shutil.copy(EXPERIMENTS / "sweep.py", scripts)
    (scripts / "car_racing.py").write_text(textwrap.dedent(FAKE))
    for group in plan(out, group=1):
        (scripts / f"config_{group.seeds[0]}.json").write_text(json.dumps(group.job.config))
    words = ["--seeds", "0:5", "--out", out, "--address", cluster, "--retries", "1"]
    words += ["--", "--preset", "debug", *BASELINE]
    with started(scripts, ray_settings, *words) as sweep:
        wait_until(lambda: (scripts / "started").exists())
        done = ["finished", "failed", "finished", "failed", "running"]
        wait_until(lambda: [group["state"] for group in kept(out)] == done)
        sweep.send_signal(signal.SIGINT)
        stdout, stderr = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, stderr
    assert "stopped; the same command goes on where it was" in stderr
    assert "group_2   retry 1   " in stdout and "group_0   finished" in stdout
    groups = kept(out)
    assert [group["retries"] for group in groups] == [0, 0, 1, 1, 0]
    assert groups[1]["message"] == "error: --x cannot be"
    assert groups[3]["message"] == "exit status 1: error: the disk (after 1 retries)"
    assert [attempt["end"] for attempt in groups[2]["attempts"]] == [
        "killed by SIGKILL",
        "finished",
    ]
    assert groups[4]["state"] == groups[4]["attempts"][0]["end"] == "stopped"
    assert groups[0]["host"] and groups[0]["node"] and groups[0]["seconds"] > 0

    shares = {int(line) for line in (scripts / "memory").read_text().splitlines()}
    assert len(shares) == 1 and 0 < 2 * shares.pop() <= os.sysconf("SC_PHYS_PAGES") * 4096
    calls = (scripts / "calls").read_text().splitlines()
    assert sorted(calls[:5])[0].startswith("group_0") and "group_2 --resume" in calls
    (scripts / "calls").unlink()
    (scripts / "cured").touch()
    with started(scripts, ray_settings, *words) as sweep:
        stdout, stderr = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, stderr
    assert "error: group_1: exit status 1: error: no memory for that (after 1 retries)" in stderr
    calls = sorted((scripts / "calls").read_text().splitlines())
    new = "--preset"
    assert calls == [f"group_1 {new}", f"group_1 {new}", f"group_3 {new}", "group_4 --resume"]
    text = (out / "comparison.md").read_text()
    assert "| baseline | 4 |" in text and "group_1 is missing: exit status 1" in text
    assert (out / "comparison.png").exists() and (out / "seed_4" / "metrics.jsonl").exists()


OPTIONS = ["--preset", "debug", "--arm", "baseline", "--cycles", "4", "--prefill", "60"]
OPTIONS += ["--eval-every", "0", "--report-every", "0", "--env.time-limit", "80"]


@pytest.mark.usefixtures("compiled_once")
def test_a_group_whose_worker_is_killed_ends_like_an_undisturbed_one(ray_settings, tmp_path):
    """The two groups differ in nothing that is logged; one of them is killed."""
    out = tmp_path / "out"
    words = ["--seeds", "7,8", "--group", "2", "--vary", "keep=2,3", "--out", out, "--", *OPTIONS]
    with started(EXPERIMENTS, ray_settings, *words) as sweep:
        wait_until(lambda: (out / "group_1/checkpoints/00000001").is_dir(), 200)
        attempt = kept(out)[1]["attempts"][0]
        os.kill(attempt["worker"], signal.SIGKILL)
        stdout, stderr = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, stderr
    assert not alive(attempt["pid"]) and "retry 1" in stdout
    groups = kept(out)
    assert [(g["state"], g["retries"]) for g in groups] == [("finished", 0), ("finished", 1)]
    assert groups[1]["attempts"][0]["end"] == "its worker process has died"
    assert len({attempt["pid"] for group in groups for attempt in group["attempts"]}) == 3
    assert "no checkpoint yet" not in (out / "logs" / "group_1.log").read_text()
    for seed in (7, 8):
        whole, resumed = (out / setting / f"seed_{seed}" for setting in ("keep=2", "keep=3"))
        assert lines(resumed) == lines(whole) and any("loss/actor" in x for x in lines(whole))
        assert len(list(resumed.glob("events.out.tfevents.*"))) == 2
    assert lines(out / "keep=2" / "seed_7") != lines(out / "keep=2" / "seed_8")
    assert [run.seed for run in read_group("x", [str(out / "keep=3")])] == [7, 8]
    assert "| keep=3 | 2 |" in (out / "comparison.md").read_text()
