"""Options of car_racing.py as a sweep gives them to its groups."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

from dreamer_jax.errors import UserError
from dreamer_jax.training.command import parse
from dreamer_jax.training.config import RunConfig
from dreamer_jax.training.last_words import unframed

RESERVED = ("seed", "seeds", "sweep", "out", "resume")  # the sweep sets them for each group


def variants(
    entries: Sequence[str], defaults: RunConfig, taken: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """(label, options of car_racing.py) for every combination of the values of --vary.

    Raises:
      UserError: values that are missing or not different, a name twice or one of `taken`.
    """
    axes, names = [], list(taken)
    for entry in entries:
        word, _, text = entry.partition("=")
        name, values = option_name(word), text.split(",")
        if not all(values) or len({_label(name, value) for value in values}) < len(values):
            raise UserError(f"--vary {entry}: write different values, as batch=8,16")
        refuse_reserved([f"--{name}"], "in --vary")
        if name == "agent":
            raise UserError(
                f"--vary {entry} cannot be: each agent has settings of its own; make a sweep for "
                "each, with --agent after the --"
            )
        if name == "preset" or name in names:
            raise UserError(f"--vary {entry}: {name} is set already, before or after the --")
        names.append(name)
        axes.append(
            [(_label(name, value), option_words(defaults, name, value)) for value in values]
        )
    return [
        (",".join(label for label, _ in choice), [word for _, words in choice for word in words])
        for choice in itertools.product(*axes)
    ]


def option_name(word: str) -> str:
    return word.split("=")[0].strip().lstrip("-").replace("-", "_")


def _label(name: str, value: str) -> str:
    return f"{name}=" + re.sub(r"[^\w.+-]", "_", value)  # names a folder


def option_words(defaults: RunConfig, name: str, value: str) -> list[str]:
    """The option as car_racing.py reads it; of switches there is one word for on, one for off."""
    now: Any = defaults
    for part in name.split("."):
        now = getattr(now, part, None)
    if isinstance(now, bool) and value.lower() in ("true", "false"):
        room, dot, last = name.rpartition(".")
        return [f"--{room}{dot}{'' if value.lower() == 'true' else 'no_'}{last}"]
    return [f"--{name}", value]


def refuse_reserved(options: Sequence[str], where: str) -> None:
    for word in options:
        if word.startswith("--") and option_name(word) in RESERVED:
            raise UserError(
                f"--{option_name(word)} {where} cannot be: sweep.py sets it for every group "
                "(--seeds, --sweep and --out stand before the --)"
            )


def parsed(arguments: Sequence[str], defaults: RunConfig) -> RunConfig:
    """As car_racing.py would read them; what it would say of unknown ones becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(arguments, defaults)
    except SystemExit as end:
        if not end.code:
            raise  # --help
        told = unframed(said.getvalue())
        raise UserError(f"car_racing.py does not take these options: {told}") from end
