"""Train the diffusion model whose scenes imagination starts from.

python experiments/pretrain_ddim.py --preset laptop --out runs/ddim      collect frames and train
python experiments/pretrain_ddim.py --resume runs/ddim                   go on where it stopped
python experiments/car_racing.py --ddim runs/ddim --seed 0               race with its scenes
"""

import sys

if __name__ == "__main__":
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from ddim_jax.training.command import pretrain

    sys.exit(pretrain(sys.argv[1:]))
