"""Gymnasium environments and the processes that run them; NumPy only, no JAX.

Importing the package registers `DreamerCarRacing-v3` and `DreamerMultiCarRacing-v0`, without time
limit wrappers: the environments count frames themselves, as one decision may span several of them.
"""

import gymnasium

RACE = "DreamerCarRacing-v3"
MULTI_CAR_RACE = "DreamerMultiCarRacing-v0"
MOST_CARS = 8  # on one track: the grid has no more places

gymnasium.register(id=RACE, entry_point="envs.car_racing:RacingEnv")
gymnasium.register(id=MULTI_CAR_RACE, entry_point="envs.races:RaceEnv")
