"""How a user writes several seeds."""

from __future__ import annotations

import re

from dreamer_jax.errors import UserError


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0:3` -> 0, 1, 2; `0,2,5` -> 0, 2, 5.

    Raises:
      UserError: another form, no seed, or one seed twice.
    """
    if span := re.fullmatch(r"(\d+):(\d+)", text):
        seeds = tuple(range(int(span[1]), int(span[2])))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        seeds = tuple(map(int, text.split(",")))
    else:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds={text} cannot be: write 0:3 for the seeds 0, 1 and 2, or a list of "
            "different seeds as 0,2,5"
        )
    return seeds
