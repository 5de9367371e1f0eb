"""What each part of DreamerV3 and of the racing recipe brings: it is left out, one at a time.

    python experiments/ablations.py                                  seed 0, every part
    python experiments/ablations.py --seeds 0:3 --only unimix "free nats"
    python experiments/ablations.py --task swingup --seeds 0:4       of DreamerV3; needs extra dmc

race: for each part 65 cycles (66 000 frames) of the recipe's first stage, then the same 100
held-out tracks. swingup: DeepMind control's cartpole from vectors by small networks, 60 cycles
(123 000 frames), where four learners in one program take no longer than one of the race does for
20; then 100 held-out episodes. ablations.md, by default in runs/ablations-TASK-seedsSEEDS, has the
differences. Ctrl-C saves; the same command goes on.
"""

import sys

from dreamer_jax.training.stage import Stage, Task

DREAMER_V3 = {
    # of the world model
    "unimix": "--agent.unimix 0",
    "free nats": "--agent.free-nats 0",
    "balance of the KL": "--agent.dyn-scale 0.55 --agent.rep-scale 0.55",
    "blocks of the GRU": "--agent.blocks 1",
    "root mean square norm": "--agent.norm layer",
    "stored latents": "--agent.no-stored-latents",
    # of the behaviour
    "two-hot rewards and values": "--agent.numbers gaussian",
    "range of returns": "--agent.range-rate 0",
    "replay value loss": "--agent.replay-value-scale 0",
    "pull to the slow value": "--agent.slow-scale 0",
    "entropy": "--agent.entropy-scale 0",
    # of the optimiser
    "LaProp and adaptive clipping": "--agent.optimiser adam --agent.behaviour-lr 4e-4",
    "adaptive clipping": "--agent.agc 1e9",
}
RECIPE = {
    "falling step size": "--agent.lr-anneal 0",
    "16 starts of imagination": "--agent.last 8",
    "weight against saturation": "--agent.excess-scale 0",
    "gentle steering": "--env.steer-scale 1",
    "road without an end": "--env.no-road-goes-on",
}
TASKS = {
    "race": Task(
        Stage(
            cycles=65,
            settings="--agent dreamer_v3 --preset laptop --replay 80000 --agent.last 16 "
            "--agent.lr-anneal 4200 --agent.excess-scale 1e-2 --env.steer-scale 0.4 "
            "--env.road-goes-on --checkpoint-every 5 --keep 3",
        ),
        DREAMER_V3 | RECIPE,
    ),
    "swingup": Task(
        Stage(
            cycles=60,
            settings="--env dm_control/cartpole-swingup-v0 --env.action-repeat 8 "
            "--agent dreamer_v3 --preset laptop --prefill 500 --agent.deter 128 --agent.hidden 64 "
            "--agent.units 64 --agent.latents 8 --agent.classes 8 --agent.blocks 4 "
            "--checkpoint-every 5 --keep 3",
        ),
        DREAMER_V3,
    ),
}

if __name__ == "__main__":  # environment workers import this file too, and must stay light
    from dreamer_jax.training.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    from dreamer_jax.training.ablations import ablate

    sys.exit(ablate(sys.argv[1:], TASKS))
