"""How fast the parts are, each measured against an alternative in the same process.

    python experiments/benchmark.py parts --preset laptop        time and arithmetic of each part
    python experiments/benchmark.py environment                  the race against stock's
    python experiments/benchmark.py replay                       our ring against flashbax's buffer
    python experiments/benchmark.py sweep --learners 1 2 4 8     what each further learner costs
    python experiments/benchmark.py growth --figure growth.png   an update against its sizes
    python experiments/benchmark.py peers                        DreamerV3 as others have timed it
    python experiments/benchmark.py estimators                   gradients of categorical latents
    python experiments/benchmark.py replay --sizes laptop --json replay.json

Candidates take turns, so that whatever else the machine does meets all of them alike. A ratio is
the median over rounds of a candidate's time by the reference's; below 1 the candidate is faster.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    import tyro
    from benchmarks.environment import environment
    from benchmarks.estimators import estimators
    from benchmarks.growth import growth, peers
    from benchmarks.parts import parts
    from benchmarks.replay import replay
    from benchmarks.sweep import sweep

    from dreamer_jax.errors import UserError

    cli = tyro.extras.subcommand_cli_from_dict
    try:
        known = {"parts": parts, "growth": growth, "peers": peers, "replay": replay}
        known |= {"sweep": sweep, "estimators": estimators, "environment": environment}
        cli(known, prog="benchmark.py", description=__doc__, args=argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    sys.exit(main(sys.argv[1:]))
