"""Gymnasium environments and the processes that run them; NumPy only, no JAX.

Importing the package registers `DreamerCarRacing-v3`. It registers no time limit wrapper: the
environment counts frames itself, as one decision may span several of them.
"""

import gymnasium

gymnasium.register(id="DreamerCarRacing-v3", entry_point="envs.car_racing:RacingEnv")
