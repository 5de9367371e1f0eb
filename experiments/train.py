"""Train an agent of the Dreamer family, or PlaNet, on any Gymnasium environment.

python experiments/train.py --env CartPole-v1                            DreamerV3 from vectors
python experiments/train.py --env Pendulum-v1 --env.pixels 64            from the rendered picture
python experiments/train.py --env ALE/Pong-v5 --agent dreamer_v2         needs the extra atari
python experiments/train.py --env dm_control/cheetah-run-v0              needs the extra dmc
python experiments/train.py --resume runs/NAME                           go on where a run stopped

All other options are those of car_racing.py; --env ID --help explains them.
"""

import sys

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from dreamer_jax.training.command import train

    sys.exit(train(sys.argv[1:]))
