"""Features of the real FID: the Inception-v3 of 2015-12-05, from a file that the user gives.

The net is a table walked by two functions, one that checks a file against it and one that computes.
Architecture: Szegedy et al. 2016; as FID has it (Heusel et al. 2017; the torch port's file
`pt_inception-2015-12-05-6726825d.pth`), border pixels are averaged over what exists, and the last
block pools by maximum. Channel numbers are read from the file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddim_jax import npz
from ddim_jax.features import FID_NET, FeatureNet, conv

SIDE = 299  # pixels, the net's input
CONVERT = (
    "python -c \"import numpy, torch; numpy.savez('inception.npz', **{k: v.numpy() for k, v in "
    "torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True).items()})\""
)

_EPSILON = 1e-3  # of the batch normalisation
_CLASSES = 1008  # of this net's unused last layer; the ImageNet net that torchvision ships has 1000
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Conv(NamedTuple):
    """Convolution, batch normalisation, ReLU; `name` is a prefix of names in the file."""

    name: str
    width: int  # as published
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """3x3; "mean" and "max" keep the size, "halve" is a maximum with stride 2."""

    kind: str


class Chain(NamedTuple):
    """One after the other."""

    parts: tuple


class Fork(NamedTuple):
    """Side by side, channels concatenated."""

    parts: tuple


Node = Conv | Pool | Chain | Fork
Weights = dict[str, tuple[jax.Array, jax.Array]]  # kernel [kh, kw, in, out] and bias [out] by name


def _conv(name: str, width: int, *kernel: int, stride: int = 1) -> Conv:
    kernel = kernel if len(kernel) == 2 else kernel * 2
    return Conv(name, width, kernel, stride, "SAME" if stride == 1 else "VALID")


def _block(name: str, *branches: tuple[Node, ...]) -> Fork:
    """A fork whose convolutions stand under `name` in the file."""

    def under(node: Node) -> Node:
        if isinstance(node, Conv):
            return node._replace(name=f"{name}.{node.name}")
        return node if isinstance(node, Pool) else type(node)(tuple(map(under, node.parts)))

    return under(Fork(tuple(Chain(branch) for branch in branches)))


def _a(name: str, pool: int) -> Fork:
    double = "branch3x3dbl_"
    return _block(
        name,
        (_conv("branch1x1", 64, 1),),
        (_conv("branch5x5_1", 48, 1), _conv("branch5x5_2", 64, 5)),
        (_conv(double + "1", 64, 1), _conv(double + "2", 96, 3), _conv(double + "3", 96, 3)),
        (Pool("mean"), _conv("branch_pool", pool, 1)),
    )


def _b(name: str) -> Fork:
    double = "branch3x3dbl_"
    last = _conv(double + "3", 96, 3, stride=2)
    return _block(
        name,
        (_conv("branch3x3", 384, 3, stride=2),),
        (_conv(double + "1", 64, 1), _conv(double + "2", 96, 3), last),
        (Pool("halve"),),
    )


def _c(name: str, inner: int) -> Fork:
    single, double = "branch7x7_", "branch7x7dbl_"
    return _block(
        name,
        (_conv("branch1x1", 192, 1),),
        (
            _conv(single + "1", inner, 1),
            _conv(single + "2", inner, 1, 7),
            _conv(single + "3", 192, 7, 1),
        ),
        (
            _conv(double + "1", inner, 1),
            _conv(double + "2", inner, 7, 1),
            _conv(double + "3", inner, 1, 7),
            _conv(double + "4", inner, 7, 1),
            _conv(double + "5", 192, 1, 7),
        ),
        (Pool("mean"), _conv("branch_pool", 192, 1)),
    )


def _d(name: str) -> Fork:
    long = "branch7x7x3_"
    return _block(
        name,
        (_conv("branch3x3_1", 192, 1), _conv("branch3x3_2", 320, 3, stride=2)),
        (
            _conv(long + "1", 192, 1),
            _conv(long + "2", 192, 1, 7),
            _conv(long + "3", 192, 7, 1),
            _conv(long + "4", 192, 3, stride=2),
        ),
        (Pool("halve"),),
    )


def _e(name: str, pool: str) -> Fork:
    def cross(prefix):
        return Fork((_conv(prefix + "a", 384, 1, 3), _conv(prefix + "b", 384, 3, 1)))

    double = "branch3x3dbl_"
    return _block(
        name,
        (_conv("branch1x1", 320, 1),),
        (_conv("branch3x3_1", 384, 1), cross("branch3x3_2")),
        (_conv(double + "1", 448, 1), _conv(double + "2", 384, 3), cross(double + "3")),
        (Pool(pool), _conv("branch_pool", 192, 1)),
    )


INCEPTION = Chain(
    (
        Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
        Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
        Conv("Conv2d_2b_3x3", 64, (3, 3), 1, "SAME"),
        Pool("halve"),
        Conv("Conv2d_3b_1x1", 80, (1, 1), 1, "VALID"),
        Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
        Pool("halve"),
        *(_a("Mixed_5b", 32), _a("Mixed_5c", 64), _a("Mixed_5d", 64)),
        _b("Mixed_6a"),
        *(_c("Mixed_6b", 128), _c("Mixed_6c", 160), _c("Mixed_6d", 160), _c("Mixed_6e", 192)),
        _d("Mixed_7a"),
        *(_e("Mixed_7b", "mean"), _e("Mixed_7c", "max")),
    )
)


def inception(path: str | Path) -> FeatureNet:
    """FID's feature net: 2048 means over space of the last block's channels ("pool3").

    Pictures are resized to 299x299 (bilinear, no antialiasing) and scaled to [-1, 1].

    Args:
      path: .npz of float arrays under the names of the torch state dict: for every convolution X
        X.conv.weight [out, in, kh, kw] and X.bn.weight, .bias, .running_mean, .running_var [out],
        e.g. X = Conv2d_1a_3x3 or Mixed_5b.branch1x1. The command in `CONVERT` makes it of the
        usual file; torch is needed for that only.

    Returns:
      A net named `FID_NET` if all widths, and fc.weight, are those of the published file; else one
      named by its width, so that its distances are not taken for FID. Raises ValueError, naming
      the file, the first tensor that is missing or odd, and the remedy.
    """
    try:
        tensors = npz.read(Path(path))
        weights, size = _folded(tensors)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path}: {error}. Make the file with: {CONVERT}") from None
    name = net_name({name: tensor.shape for name, tensor in tensors.items()}, size)
    return FeatureNet(name, size, partial(_apply, jax.tree.map(jnp.asarray, weights)))


def net_name(shapes: dict[str, tuple[int, ...]], size: int) -> str:
    """`FID_NET` for the published file's shapes only, so that nothing else is reported as FID."""
    published = {**published_shapes(), "fc.weight": (_CLASSES, 2048)}
    same = all(shapes.get(name) == shape for name, shape in published.items())
    return FID_NET if same else f"inception-v3-width-{size}"


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file's tensors that the features need."""
    shapes = {}

    def visit(node, c_in):
        shapes.update(_shapes(node, node.width, c_in))
        return node.width

    _channels(INCEPTION, 3, visit)
    return shapes


def _shapes(node: Conv, c_out: int, c_in: int) -> dict[str, tuple[int, ...]]:
    statistics = {f"{node.name}.bn.{name}": (c_out,) for name in _STATISTICS}
    return {f"{node.name}.conv.weight": (c_out, c_in, *node.kernel), **statistics}


def _channels(node: Node, c_in: int, visit: Callable[[Conv, int], int]) -> int:
    """Channels after `node`, by asking visit(convolution, channels before it) in file order."""
    match node:
        case Conv():
            return visit(node, c_in)
        case Chain(parts):
            for part in parts:
                c_in = _channels(part, c_in, visit)
            return c_in
        case Fork(parts):
            return sum(_channels(part, c_in, visit) for part in parts)
    return c_in


def _folded(tensors: dict[str, np.ndarray]) -> tuple[dict[str, tuple], int]:
    """Checks all tensors; (kernel, bias) by name with the normalisation folded in, and d."""
    weights, used = {}, set()

    def visit(node, c_in):
        first = _tensor(tensors, f"{node.name}.conv.weight", (None, c_in, *node.kernel))
        shapes = _shapes(node, len(first), c_in)
        used.update(shapes)
        weights[node.name] = fold_norm(*(_tensor(tensors, *item) for item in shapes.items()))
        return len(first)

    size = _channels(INCEPTION, 3, visit)
    for name, tensor in tensors.items():
        if name == "fc.weight" and len(tensor) != _CLASSES:
            raise ValueError(f"fc.weight has {len(tensor)} classes and not {_CLASSES}: another net")
        if name not in used and not name.startswith("fc.") and "num_batches" not in name:
            raise ValueError(f"tensor {name} does not belong to this net")
    return weights, size


def _tensor(tensors: dict, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The tensor as float64; None in `shape` is any number above 0."""
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    x = tensors[name]
    fits = x.ndim == len(shape) and all(
        n == want or (want is None and n > 0) for n, want in zip(x.shape, shape, strict=True)
    )
    if not fits or x.dtype.kind != "f":
        want = ["any" if n is None else n for n in shape]
        raise ValueError(f"tensor {name} is {x.dtype} {list(x.shape)} and not float {want}")
    if not np.isfinite(x).all() or (name.endswith("running_var") and x.min() < 0):
        raise ValueError(f"tensor {name} has values that are not finite, or a negative variance")
    return x.astype(np.float64)


def fold_norm(
    kernel: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Convolution and batch normalisation as one convolution with a bias.

    Args:
      kernel: [out, in, kh, kw], torch's order.
      gamma, beta, mean, var: [out], weight, bias and running statistics.

    Returns:
      kernel float32 [kh, kw, in, out] and bias [out], with which
      conv(x) + bias = gamma (conv_old(x) - mean) / sqrt(var + 1e-3) + beta.
    """
    scale = gamma / np.sqrt(var + _EPSILON)
    folded = kernel.transpose(2, 3, 1, 0) * scale
    return folded.astype(np.float32), (beta - mean * scale).astype(np.float32)


@jax.jit
def _apply(weights: Weights, images: jax.Array) -> jax.Array:
    return run(INCEPTION, weights, resized(images)).mean((1, 2))


def resized(images: jax.Array) -> jax.Array:
    """uint8 [b, h, w, 3] -> float32 [b, 299, 299, 3] in [-1, 1]; pixel centres at (i + 1/2) / n."""
    x = images.astype(jnp.float32) / 127.5 - 1.0
    shape = (len(x), SIDE, SIDE, 3)
    return jax.image.resize(
        x, shape, "bilinear", antialias=False, precision=jax.lax.Precision.HIGHEST
    )


def run(node: Node, weights: Weights, x: jax.Array) -> jax.Array:
    """[b, h, w, in] -> [b, h', w', out]."""
    match node:
        case Conv():
            kernel, bias = weights[node.name]
            return jax.nn.relu(conv(x, kernel, node.stride, node.padding) + bias)
        case Pool(kind):
            return pool(x, kind)
        case Chain(parts):
            for part in parts:
                x = run(part, weights, x)
            return x
        case Fork(parts):
            return jnp.concatenate([run(part, weights, x) for part in parts], axis=-1)


def pool(x: jax.Array, kind: str) -> jax.Array:
    """3x3 over [b, h, w, c]; see `Pool`. A mean at the border is over the pixels that exist."""
    if kind != "mean":
        stride, padding = (2, "VALID") if kind == "halve" else (1, "SAME")
        window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)

    def total(y):
        return jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
