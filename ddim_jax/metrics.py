"""How good generated pictures are: distances between sets, coverage, and copies (NumPy only).

Sets of feature vectors come from `ddim_jax.features`. All sums are float64; everything that grows
with the product of two set sizes is done in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from ddim_jax.features import FeatureNet, features, pictures, score_name

_BLOCK = 512  # vectors of each set held as float64 at once: 2 x 113 MB for 96x96x3 pixels


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of feature vectors.

    Args:
      a: [n, d].
      b: [m, d]; n or m may be below d. The estimate is biased upwards for small sets: compare
        only figures with the same n and m.

    Returns:
      |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), in squared feature units, with the unbiased
      covariances A, B (Heusel et al. 2017, eq. 6). Raises ValueError, naming the argument, for
      fewer than 2 vectors, different widths, or values that are not finite.
    """
    a, b = _vectors(a, "a"), _vectors(b, "b")
    _same_width(a, b, "a", "b")
    return frechet_from_moments(*moments(a), *moments(b))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and unbiased covariance [d, d] of vectors [n, d], n >= 2, as float64."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_from_moments(mu1: ArrayLike, cov1: ArrayLike, mu2: ArrayLike, cov2: ArrayLike) -> float:
    """The same distance from means [d] and covariances [d, d].

    Raises ValueError, naming the argument, for shapes that do not fit, values that are not
    finite, or a covariance that is not symmetric and positive semi-definite.
    """
    mu1, mu2 = (_finite(np.ravel(m), name) for m, name in ((mu1, "mu1"), (mu2, "mu2")))
    if mu1.shape != mu2.shape:
        raise ValueError(f"mu2 has {mu2.size} entries but mu1 has {mu1.size}")
    root1, root2 = _root(cov1, "cov1", mu1.size), _root(cov2, "cov2", mu1.size)
    # With A = R1 R1', B = R2 R2' the eigenvalues of A^(1/2) B A^(1/2) are the squared singular
    # values of R1' R2: no square root is taken of rounding errors, which counts when n < d.
    cross = np.linalg.svd(root1.T @ root2, compute_uv=False).sum()
    total = np.sum((mu1 - mu2) ** 2) + np.sum(root1**2) + np.sum(root2**2) - 2.0 * cross
    return max(0.0, float(total))


def _root(cov: ArrayLike, name: str, size: int) -> np.ndarray:
    """R [d, rank] with R R' = cov."""
    cov = _finite(cov, name)
    if cov.shape != (size, size):
        raise ValueError(f"{name} must be [{size}, {size}], not {list(cov.shape)}")
    scale = np.abs(cov).max(initial=0.0)
    if np.abs(cov - cov.T).max(initial=0.0) > 1e-6 * scale:
        raise ValueError(f"{name} is not symmetric")
    values, vectors = np.linalg.eigh((cov + cov.T) / 2.0)
    if values.min() < -1e-4 * scale:
        raise ValueError(f"{name} has a negative eigenvalue, {values.min():.3g}")
    kept = values > size * np.finfo(np.float64).eps * values.max()
    return vectors[:, kept] * np.sqrt(values[kept])


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 and 2), both in [0, 1].

    Args:
      real: [n, d] feature vectors.
      generated: [m, d].
      k: each vector's ball reaches to its k-th nearest neighbour in its own set.

    Returns:
      precision, the share of generated vectors inside some real ball (are they plausible?), and
      recall, the share of real vectors inside some generated ball (is everything covered?).
      Raises ValueError, naming the argument, for k < 1, fewer than k + 1 vectors, different
      widths, or values that are not finite.
    """
    real, generated = _vectors(real, "real"), _vectors(generated, "generated")
    _same_width(real, generated, "real", "generated")
    for x, name in ((real, "real"), (generated, "generated")):
        if not 1 <= k < len(x):
            raise ValueError(f"k={k} neighbours of {len(x)} {name} vectors: need 1 <= k < n")
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def _share_inside(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    radii = nearest_neighbours(centres, centres, k + 1)[1][:, k] ** 2  # the nearest is itself
    # Copies of one picture must meet even where their radius is 0 and the sums round differently.
    slack = 1e-12 * np.max(np.sum(centres**2, axis=1))
    inside = np.zeros(len(points), bool)
    for rows in _slices(len(points)):
        for cols in _slices(len(centres)):
            near = _squared_distances(points[rows], centres[cols]) <= radii[cols] + slack
            inside[rows] |= near.any(axis=1)
    return float(inside.mean())


def nearest_neighbours(
    generated: ArrayLike, training: ArrayLike, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k training entries nearest to each generated one, nearest first.

    Args:
      generated: [n, ...], pictures or features: all trailing axes make one Euclidean space.
      training: [m, ...], the same trailing axes.
      k: 1 <= k <= m.

    Returns:
      indices int64 [n, k] into training (of equals the first), and distances float64 [n, k] in
      the units of the entries. Raises ValueError, naming the argument, for empty sets, different
      sizes of entry, values that are not finite, or k out of range.
    """
    generated, training = _flat(generated, "generated"), _flat(training, "training")
    _same_width(generated, training, "generated", "training")
    if not 1 <= k <= len(training):
        raise ValueError(f"k={k} neighbours among {len(training)} training entries")
    indices = np.empty((len(generated), k), np.int64)
    squared = np.empty((len(generated), k))
    for rows in _slices(len(generated)):
        found = np.empty((len(generated[rows]), 0)), np.empty((len(generated[rows]), 0), np.int64)
        for cols in _slices(len(training)):
            fresh = _squared_distances(generated[rows], training[cols])
            numbers = np.broadcast_to(np.arange(cols.start, cols.stop), fresh.shape)
            found = _smallest(
                np.concatenate([found[0], fresh], axis=1),
                np.concatenate([found[1], numbers], axis=1),
                k,
            )
        squared[rows], indices[rows] = found
    return indices, np.sqrt(squared)


def _smallest(values: np.ndarray, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row, in order, with their labels; fewer columns: all of them."""
    row = np.arange(len(values))
    picked = []
    for _ in range(min(k, values.shape[1])):
        at = values.argmin(axis=1)
        picked.append((values[row, at], labels[row, at]))
        values[row, at] = np.inf
    return tuple(np.stack(column, axis=1) for column in zip(*picked, strict=True))


def grid_with_neighbours(
    generated: np.ndarray, training: np.ndarray, indices: np.ndarray, gap: int = 2
) -> np.ndarray:
    """A picture in which memorised frames are seen.

    Args:
      generated: uint8 [n, h, w, 3].
      training: uint8 [m, h, w, 3].
      indices: int [n, k] into training, as `nearest_neighbours` gives them.
      gap: white pixels between frames.

    Returns:
      uint8 [n (h + gap) - gap, (1 + k) (w + gap) - gap, 3]; each row is a generated frame and, to
      its right, its training frames. Raises ValueError for frames or indices that do not fit.
    """
    generated, training = pictures(generated, "generated"), pictures(training, "training")
    _same_size(generated, training, "generated", "training")
    indices = np.asarray(indices)
    if indices.ndim != 2 or len(indices) != len(generated) or indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers [{len(generated)}, k], not {indices.shape}")
    if np.any((indices < 0) | (indices >= len(training))):
        raise ValueError(f"indices must lie in 0 .. {len(training) - 1}")
    cells = np.concatenate([generated[:, None], training[indices]], axis=1)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    n, columns, h, w, c = cells.shape
    grid = cells.transpose(0, 2, 1, 3, 4).reshape(n * h, columns * w, c)
    return grid[: n * h - gap, : columns * w - gap]


def compare_pictures(
    real: np.ndarray,
    generated: np.ndarray,
    training: np.ndarray,
    net: FeatureNet,
    k: int = 3,
) -> dict[str, float]:
    """One column of a table: how good `generated` is.

    Args:
      real: uint8 [n, h, w, 3], frames that the generator was *not* trained on.
      generated: uint8 [m, h, w, 3].
      training: uint8 [t, h, w, 3], frames that it was trained on.
      net: the feature space; its name is part of the score's.
      k: of precision and recall.

    Returns:
      The Frechet distance under `score_name(net)`, and the same with m training frames (evenly
      spaced; all, if there are fewer) in place of the generated ones: about the best to be hoped
      for. Precision and recall. Medians, over generated and over real frames, of the distance to
      the nearest training frame, as root mean square over pixel values (0 .. 255): generated far
      below real means copies. The set sizes, on which the distance depends. Raises ValueError as
      the parts do.
    """
    named = {"real": real, "generated": generated, "training": training}
    real, generated, training = (pictures(images, name) for name, images in named.items())
    _same_size(real, generated, "real", "generated")
    _same_size(real, training, "real", "training")
    for name, images in named.items():
        if len(images) < 2:
            raise ValueError(f"{name} must hold at least 2 pictures")
    score = score_name(net)
    f_real, f_generated = features(net, real), features(net, generated)
    spaced = np.linspace(0, len(training) - 1, min(len(training), len(generated)))
    f_training = features(net, training[spaced.round().astype(int)])
    precision, recall = precision_recall(f_real, f_generated, k)
    rms = np.sqrt(np.prod(real.shape[1:]))
    near_generated = nearest_neighbours(generated, training, 1)[1] / rms
    near_real = nearest_neighbours(real, training, 1)[1] / rms
    return {
        score: frechet_distance(f_real, f_generated),
        f"{score} of training frames": frechet_distance(f_real, f_training),
        f"precision (k={k})": precision,
        f"recall (k={k})": recall,
        "nearest training frame, generated": float(np.median(near_generated)),
        "nearest training frame, real": float(np.median(near_real)),
        "real frames": len(real),
        "generated frames": len(generated),
        "training frames": len(training),
    }


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[i, d], [j, d] -> float64 [i, j]; exact for uint8 pixels, whose sums are whole numbers."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = np.einsum("id,id->i", a, a)[:, None] + np.einsum("jd,jd->j", b, b)
    return np.maximum(squares - 2.0 * (a @ b.T), 0.0)


def _finite(x: ArrayLike, name: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite")
    return x


def _vectors(x: ArrayLike, name: str) -> np.ndarray:
    x = _finite(x, name)
    if x.ndim != 2 or len(x) < 2 or not x.size:
        raise ValueError(f"{name} must be [n, d] with n >= 2, not {list(x.shape)}")
    return x


def _flat(x: ArrayLike, name: str) -> np.ndarray:
    """[n, ...] -> [n, d], type kept: pixels of a whole training set do not fit as float64."""
    x = np.asarray(x)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"{name} must be [n, ...] and not empty, not {list(x.shape)}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite")
    return x.reshape(len(x), -1)


def _same_width(a: np.ndarray, b: np.ndarray, name_a: str, name_b: str) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{name_b} has width {b.shape[1]} but {name_a} has {a.shape[1]}")


def _same_size(a: np.ndarray, b: np.ndarray, name_a: str, name_b: str) -> None:
    if a.shape[1:] != b.shape[1:]:
        sizes = f"{list(b.shape[1:])} but {name_a} of {list(a.shape[1:])}"
        raise ValueError(f"{name_b} has frames of {sizes}")
