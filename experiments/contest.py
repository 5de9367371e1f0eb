"""Race trained drivers against each other on held-out tracks.

python experiments/contest.py runs/NAME                       all learners of a run
python experiments/contest.py runs/NAME:0 runs/NAME:0@20      seed 0 against its kept 20th cycle
python experiments/contest.py runs/A:0 runs/B:0 --tracks 20   drivers of two runs

Prints win rates with 95% bootstrap intervals over tracks; writes contest.json and a video from
above and from each car.
"""

import sys

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from dreamer_jax.training.command import compete

    sys.exit(compete(sys.argv[1:]))
