"""The one line that stands for a failed program's log."""

import subprocess
import sys

import pytest

from dreamer_jax.training.last_words import last_line

TYRO = """\
import tyro, dataclasses
@dataclasses.dataclass
class Options:
    batch: int = 1
tyro.cli(Options, args=["--batch", "x"])
"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("begins\nerror: no\n\n", "error: no"),
        ("cycle 1\rcycle 2\rcycle 3\n", "cycle 3"),
        ("warning: odd\n╭─ Unknown ─────────╮\n│ No --foo,  │\n│ --bar │\n│ ─────────── │\n"
         "│ See --help │\n╰───────────────────╯\n", "No --foo, --bar"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_last_line_by_hand(tmp_path, log, line):
    (tmp_path / "log").write_text(log, encoding="utf-8")
    assert last_line(tmp_path / "log") == line


def test_what_tyro_says_of_a_value_is_kept(tmp_path):
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        done = subprocess.run([sys.executable, "-c", TYRO], stderr=log, stdout=log, check=False)
    assert done.returncode == 2
    assert "--batch: invalid literal" in last_line(tmp_path / "log")
