"""Play held-out tracks with a trained agent.

    python experiments/evaluate.py runs/NAME --episodes 20

Prints mean, standard deviation, interquartile mean, 95% bootstrap intervals and the lap completion
rate; writes evaluation.json and a video into the run folder.
"""

import sys

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from dreamer_jax.training.command import assess

    sys.exit(assess(sys.argv[1:]))
