"""How much memory is free, in a container too."""

import math

import jax
import pytest

from dreamer_jax.errors import UserError
from dreamer_jax.training import memory
from dreamer_jax.training.memory import GIB, container_bytes

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
UNLIMITED = 9223372036854771712  # version 1 has no word for it


@pytest.fixture
def groups(tmp_path):
    return tmp_path / "cgroup"


def group(folder, names, limit, used=0, cache=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"file {cache + 5}\n{names[2]} {cache}\n")


def own(tmp_path, *lines):
    path = tmp_path / "own"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_container_sees_its_own_group_as_the_root(groups, tmp_path):
    group(groups, V2, 1000, used=300, cache=100)  # a file's pages make way
    assert container_bytes(groups, own(tmp_path, "0::/")) == 800
    group(groups, V2, "max", used=300)
    assert container_bytes(groups, own(tmp_path, "0::/")) == math.inf


def test_the_narrowest_of_the_groups_around_counts(groups, tmp_path):
    group(groups / "jobs", V2, 1000, used=900, cache=0)
    group(groups / "jobs/step", V2, 500, used=100)
    group(groups / "jobs/other", V2, 10)
    lines = own(tmp_path, "0::/jobs/step/task")
    assert container_bytes(groups, lines) == 100
    group(groups / "jobs", V2, "max", used=900)
    assert container_bytes(groups, lines) == 400


def test_learners_of_several_devices_and_a_replay_too_large(monkeypatch):
    """8 GiB may be used on each; a learner takes 2 x 1.5 + 0.5."""
    monkeypatch.setattr(memory, "free_memory", lambda: (10 * GIB, "free"))
    monkeypatch.setattr(memory, "_of_device", lambda: {"bytes_limit": 10 * GIB})
    ring, state = int(1.5 * GIB), int(0.5 * GIB)
    text = memory.plan(2, ring, state, devices=8)
    assert "2 learners on each of 8 devices of" in text and "up to 16 would fit" in text
    with pytest.raises(UserError, match="use 8 or up to 2 times as many with --seeds"):
        memory.plan(3, ring, state, devices=8)
    with pytest.raises(UserError, match="lower --replay to 95% of"):  # 95.9 would fit
        memory.plan(1, int(7.5 / 0.959 * GIB) // 2, state)
    with pytest.raises(UserError, match="lower --replay to less than a hundredth"):
        memory.plan(1, 1000 * GIB, state)
    monkeypatch.setattr(memory, "_of_device", dict)  # CPU devices have one memory
    assert "2 learners of" in memory.plan(1, ring, state, devices=2)
    with pytest.raises(UserError, match="use 2 or fewer with --seeds"):
        memory.plan(1, ring, state, devices=4)


def test_version_1(groups, tmp_path):
    lines = own(tmp_path, "9:name=systemd:/", "4:memory:/docker/a:b", "1:cpu,cpuacct:/x", "0::/")
    group(groups / "memory", V1, 1000, used=300, cache=100)  # /docker/a:b is the host's name
    group(groups / "memory/x", V1, 10)
    assert container_bytes(groups, lines) == 800
    group(groups / "memory/docker/a:b", V1, 600)
    assert container_bytes(groups, lines) == 600
    both = own(tmp_path, "3:hugetlb,memory:/x")
    assert container_bytes(groups, both) == 10


@pytest.mark.parametrize("line", ["0::/", "0::/../..", "4:memory:/gone", "1:cpu:/"])
def test_without_limits(groups, tmp_path, line):
    assert container_bytes(groups, own(tmp_path, line)) == math.inf
    assert container_bytes(groups, tmp_path / "nowhere") == math.inf  # not on Linux


def test_the_smaller_counts_and_is_named(groups, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices("cpu"))
    monkeypatch.setattr(memory, "GROUPS", groups)
    monkeypatch.setattr(memory, "OWN_GROUPS", own(tmp_path, "4:memory:/", "0::/"))
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10 * GIB)
    group(groups / "memory", V1, UNLIMITED)
    assert memory.free_bytes() == 10 * GIB
    assert "; 10.0 GiB are free, a fifth" in memory.plan(1, GIB, GIB)
    group(groups / "memory", V1, 4 * GIB, used=GIB, cache=GIB // 2)
    assert memory.free_bytes() == 3.5 * GIB
    text = r"; 3.5 GiB are free below this container's limit \(cgroup\), a fifth of which"
    with pytest.raises(UserError, match=text):
        memory.plan(1, GIB, GIB)


@pytest.fixture
def machine(groups, tmp_path, monkeypatch):
    """10 GiB are free on the machine, 6 in its container."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices("cpu"))
    monkeypatch.setattr(memory, "GROUPS", groups)
    monkeypatch.setattr(memory, "OWN_GROUPS", own(tmp_path, "0::/"))
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10 * GIB)
    group(groups, V2, 6 * GIB)


def test_processes_at_once_plan_with_their_shares(machine, monkeypatch):
    assert memory.share(2) == 3 * GIB and memory.share(4) == 1.5 * GIB
    monkeypatch.setenv(memory.LIMIT, str(memory.share(2)))
    text = r"; 3.0 GiB are this process's share \(DREAMER_JAX_MEMORY\), a fifth of which"
    with pytest.raises(UserError, match=text):
        memory.plan(1, GIB, GIB)
    assert memory.share(3) == GIB  # of a share there are shares again
    monkeypatch.setenv(memory.LIMIT, str(8 * GIB))  # more than there is
    assert memory.free_bytes() == 6 * GIB
    monkeypatch.setenv(memory.LIMIT, "")
    assert memory.free_bytes() == 6 * GIB


@pytest.mark.parametrize("told", ["8G", "-1", "1.5"])
def test_a_share_that_is_no_number_of_bytes(machine, monkeypatch, told):
    monkeypatch.setenv(memory.LIMIT, told)
    with pytest.raises(UserError, match=f"DREAMER_JAX_MEMORY={told} is not"):
        memory.free_bytes()
