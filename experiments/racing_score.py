"""The best score on CarRacing-v3 so far: DreamerV3 in three stages, then 100 held-out tracks,
driven by the mean of the weights of its last nine checkpoints.

    python experiments/racing_score.py --seed 0

285 000 frames, some 2 hours on one CPU core of 93 GFLOP/s and up to three times that on a slow one.
Ctrl-C saves; the same command goes on. What each setting is for, and what was tried before it, is
in docs/racing.md.
"""

import sys

from dreamer_jax.training.stage import Stage

RECIPE = (
    # To learn to drive: gentler steering, a step size that falls, imagination from the last 16
    # records of each sequence (8 is the preset's), a replay from which little is lost; no steering
    # so far into saturation that it can no longer learn; and a road without an end, before which
    # the car would dawdle or leave the road.
    Stage(
        cycles=33,
        settings="--agent dreamer_v3 --preset laptop --replay 80000 --agent.last 16 "
        "--agent.lr-anneal 16800 --agent.excess-scale 1e-2 --env.steer-scale 0.4 "
        "--env.road-goes-on",
    ),
    # To stay on the road: wheels off it cost (from the start they would teach to stand still).
    Stage(cycles=70, settings="--env.idle-limit 250 --env.off-road-cost 1"),
    # To finish the lap on any track, and not to turn round after a spin; to touch every tile, and
    # the grass less. The checkpoints kept are for the mean of their weights.
    Stage(
        cycles=280,
        settings="--env.both-ways --env.backwards-ends --env.off-road-cost 4 --keep 9",
    ),
)

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from dreamer_jax.training.stages import score

    sys.exit(score(sys.argv[1:], RECIPE))
