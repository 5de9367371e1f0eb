"""A restart happens once, where it helps, and hands everything on."""

import os
import subprocess
import sys

import pytest

from dreamer_jax.training.huge_pages import MODE, NAME, wanted

ASKED = "glibc.malloc.hugetlb=1"


def mode(tmp_path, text):
    file = tmp_path / "enabled"
    file.write_text(text)
    return file


@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_it_asks_where_linux_waits_to_be_asked(tmp_path, before):
    file = mode(tmp_path, "always [madvise] never\n")
    new = wanted({NAME: before, "HOME": "/there"}, file)
    assert new == {NAME: f"{before}:{ASKED}".lstrip(":"), "HOME": "/there"}
    assert wanted(new, file) is None  # no second restart


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n"])
def test_it_stays_where_asking_changes_nothing(tmp_path, text):
    assert wanted({}, mode(tmp_path, text)) is None
    assert wanted({}, tmp_path / "missing") is None


def test_it_stays_where_the_user_has_chosen_or_without_linux(tmp_path, monkeypatch):
    file = mode(tmp_path, "[madvise]")
    assert wanted({NAME: "glibc.malloc.hugetlb=0"}, file) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert wanted({}, file) is None


def test_the_process_goes_on_with_its_arguments(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from dreamer_jax.training import huge_pages\n"
        f"huge_pages.MODE = __import__('pathlib').Path({str(mode(tmp_path, '[madvise]'))!r})\n"
        "print('start', os.getpid(), sys.argv[1:], sys.flags.optimize)\n"
        "huge_pages.restart_with_huge_pages()\n"
        f"print('end', os.environ[{NAME!r}])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != NAME}
    ran = subprocess.run(
        [sys.executable, "-O", script, "--seed", "a b"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, end = ran.stdout.splitlines()
    assert first == second and first.endswith("['--seed', 'a b'] 1")
    assert end == f"end {ASKED}" and MODE.name == "enabled"
