"""Many learners on many machines: groups of seeds, each one program, handed to a Ray cluster.

    python experiments/sweep.py --seeds 0:16 --group 4 --out runs/sweep -- --preset laptop
    python experiments/sweep.py --seeds 0:16 --group 8 --sweep actor_lr=1e-4,3e-4 --gpus 1 \
        --address auto --out /shared/sweep -- --preset paper --arm baseline

A group whose process or machine dies is started again from its last checkpoint; the same command
goes on where it stopped. Results are gathered in --out: metrics, TensorBoard files, comparison.md.
"""

import sys
from pathlib import Path


def trained(model: str) -> bool:
    """Whether the diffusion model that --ddim names needs no training before a race."""
    from ddim_jax.training import scenes  # here: it brings JAX along

    return scenes.trained(model)


if __name__ == "__main__":
    from dreamer_jax.training.sweep import sweep

    sys.exit(sweep(sys.argv[1:], Path(__file__).resolve().parent, trained))
