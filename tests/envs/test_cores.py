"""How many processes play the environments."""

import os

import pytest

from envs.cores import own_cores, worker_count


@pytest.fixture
def five(monkeypatch):
    """The process has five processors, the machine 64."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {9, 2, 3, 5, 4}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("NPROC", raising=False)


def test_one_each_but_no_more_than_processors(five):
    assert own_cores() == [2, 3, 4, 5, 9]
    assert worker_count(3) == 3 and worker_count(8) == 5


def test_the_machines_where_the_system_does_not_say(five, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert own_cores() == []
    assert worker_count(8) == 8 and worker_count(100) == 64


@pytest.mark.parametrize(("told", "wanted"), [("2", 2), ("0", 1), ("9", 5), ("", 5), ("all", 5)])
def test_a_share_of_them(five, monkeypatch, told, wanted):
    monkeypatch.setenv("NPROC", told)
    assert worker_count(8) == wanted
