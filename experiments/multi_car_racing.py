"""Train several cars on one track, each a learner of its own.

python experiments/multi_car_racing.py --cars 2 --seed 0       seeds 0 and 1 in one race
python experiments/multi_car_racing.py --cars 2 --seeds 0:8    four such races at once
python experiments/multi_car_racing.py --resume runs/NAME      go on where a run stopped

All other options are those of car_racing.py.
"""

import sys

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from ddim_jax.training.scenes import find_scenes
    from dreamer_jax.training.command import race_many

    sys.exit(race_many(sys.argv[1:], find_scenes))
