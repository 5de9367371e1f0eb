"""Stock's race, and what is in its pictures besides road and car, made once for all frames."""

import os
import warnings
from functools import lru_cache

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Box2D's import crashes where warnings are errors
    from gymnasium.envs.box2d import car_racing as stock

pygame = stock.pygame


@lru_cache(maxsize=4096)
def score_text(text: str) -> pygame.Surface:
    """The score as stock writes it. Opening the font anew is most of a text's cost."""
    pygame.font.init()  # any environment's `close` ends it, and the fonts with it
    font = pygame.font.Font(pygame.font.get_default_font(), 42)
    return font.render(text, True, (255, 255, 255), (0, 0, 0))


def centres_and_radii(polygons: list) -> tuple[np.ndarray, np.ndarray]:
    """N polygons of 4 corners -> centres [N, 2], radii [N] of circles that hold them."""
    corners = np.array(polygons, np.float64)
    centres = corners.mean(axis=1)
    return centres, np.linalg.norm(corners - centres[:, None], axis=-1).max(axis=1)


GRASS = [
    [
        (stock.GRASS_DIM * x + stock.GRASS_DIM, stock.GRASS_DIM * y + 0),
        (stock.GRASS_DIM * x + 0, stock.GRASS_DIM * y + 0),
        (stock.GRASS_DIM * x + 0, stock.GRASS_DIM * y + stock.GRASS_DIM),
        (stock.GRASS_DIM * x + stock.GRASS_DIM, stock.GRASS_DIM * y + stock.GRASS_DIM),
    ]
    for x in range(-20, 20, 2)
    for y in range(-20, 20, 2)
]
GRASS_POLYGONS = centres_and_radii(GRASS)
