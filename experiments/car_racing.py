"""Train the world-model agent on CarRacing-v3 from pixels.

python experiments/car_racing.py --seed 0                    a new run
python experiments/car_racing.py --arm baseline --seed 0     starts from replayed states only
python experiments/car_racing.py --resume runs/NAME          go on where a run stopped
python experiments/car_racing.py --preset laptop --help      every setting explained
"""

import sys

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from ddim_jax.training.scenes import find_scenes
    from dreamer_jax.training.command import race

    sys.exit(race(sys.argv[1:], find_scenes))
