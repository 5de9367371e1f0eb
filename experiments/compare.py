"""Compare arms over many seeds: curves with intervals, times to a threshold, chances of winning.

    python experiments/compare.py --seeds 0:3 --out results --preset laptop -- --cycles 30
    python experiments/compare.py baseline=runs/a,runs/b ddim=runs/c,runs/d --out results

The first line runs every arm with every seed and goes on where it was when it is called again; the
second takes finished run folders (or curves.csv files of earlier comparisons). Both write
comparison.png, comparison.md, table.csv, curves.csv and held_out.csv.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.compare import compare

    sys.exit(compare(sys.argv[1:], scripts=Path(__file__).resolve().parent))
