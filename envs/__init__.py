"""Gymnasium environments and the processes that run them; NumPy only, no JAX.

Importing the package registers `DreamerCarRacing-v3` and `DreamerMultiCarRacing-v0`, without time
limit wrappers: the environments count frames themselves, as one decision may span several of them.
"""

import gymnasium

gymnasium.register(id="DreamerCarRacing-v3", entry_point="envs.car_racing:RacingEnv")
gymnasium.register(id="DreamerMultiCarRacing-v0", entry_point="envs.races:RaceEnv")
