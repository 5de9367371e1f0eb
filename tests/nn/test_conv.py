import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_jax.nn import blocks, conv
from dreamer_jax.nn.vision import Decoder, Encoder, fit

# (size, kernel, stride): every layer of the published networks, non-overlapping and odd ones
CASES = [
    (96, 4, 3),
    (31, 4, 2),
    (14, 4, 2),
    (6, 4, 2),
    (12, 2, 2),
    (13, 3, 2),
    (9, 1, 1),
    (8, 3, 1),
]
TRANSPOSED = [
    (1, 5, 2),
    (5, 6, 2),
    (14, 6, 2),
    (32, 6, 3),
    (6, 2, 2),
    (7, 3, 2),
    (9, 1, 1),
    (5, 3, 1),
]


def data(size, kernel):
    a, b = jax.random.split(jax.random.key(size * 10 + kernel))
    return jax.random.normal(a, (2, size, size, 3)), jax.random.normal(b, (kernel, kernel, 3, 4))


def agree(one, other, x, w, stride):
    y = one(x, w, stride)
    np.testing.assert_allclose(y, other(x, w, stride), rtol=1e-4, atol=1e-4)
    weight = jax.random.normal(jax.random.key(9), y.shape)
    grads = [
        jax.grad(lambda x, w, f=f: jnp.sum(weight * f(x, w, stride)), (0, 1))(x, w)
        for f in (one, other)
    ]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("size", "kernel", "stride"), CASES)
def test_patches_equal_the_plain_convolution(size, kernel, stride):
    agree(conv.conv_patches, conv.conv_plain, *data(size, kernel), stride)


def test_the_same_size_is_a_plain_convolution_with_zeros_around():
    x, w = data(7, 3)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = conv.conv_plain(padded, w, 1)
    np.testing.assert_allclose(conv.conv_same(x, w), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "kernel", "stride"), TRANSPOSED)
def test_patches_equal_the_plain_transposed_convolution(size, kernel, stride):
    agree(conv.conv_transpose_patches, conv.conv_transpose_plain, *data(size, kernel), stride)


@pytest.mark.parametrize("stride", [4, 2])
@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (3, 8), (8, 3)])
def test_a_map_smaller_than_the_kernel_is_refused(stride, rows, cols):
    with pytest.raises(ValueError, match=f"kernel of 4 does not fit a map of {rows} x {cols}"):
        conv.conv_patches(jnp.zeros((2, rows, cols, 1)), jnp.zeros((4, 4, 1, 5)), stride)
    just = conv.conv_patches(jnp.zeros((2, 4, 4, 1)), jnp.zeros((4, 4, 1, 5)), stride)
    assert just.shape == (2, 1, 1, 5)


def test_transposed_convolution_by_hand():
    # pixels 1 and 10, kernel (1, 2, 3), stride 2: the stamps overlap in the middle
    x = jnp.array([1.0, 10.0]).reshape(1, 1, 2, 1)
    w = jnp.zeros((3, 3, 1, 1)).at[0, :, 0, 0].set(jnp.array([1.0, 2.0, 3.0]))
    row = conv.conv_transpose_patches(x, w, 2)[0, 0, :, 0]
    np.testing.assert_allclose(row, [1.0, 2.0, 3.0 + 10.0, 20.0, 30.0])


def test_fold_by_hand_and_inverse():
    image = jnp.arange(16).reshape(4, 4, 1)
    np.testing.assert_array_equal(conv.fold(image, 2)[0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(conv.unfold(conv.fold(image, 2), 2), image)
    with pytest.raises(ValueError, match="fold=3"):
        conv.fold(image, 3)


def test_published_encoder_and_decoder_sizes():
    layers = ((32, 4, 3), (64, 4, 2), (128, 4, 2), (256, 4, 2))
    encoder = Encoder(layers, 512)
    params = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    # 96 -> 31 -> 14 -> 6 -> 2: 2 * 2 * 256 = 1024 inputs of the linear layer
    assert params["params"]["Linear_0"]["kernel"].shape == (1024, 512)
    decoder = Decoder((1, 1024), ((128, 5, 2), (64, 6, 2), (32, 6, 2), (3, 6, 3)), (96, 96, 3))
    out, _ = jax.eval_shape(
        lambda k: decoder.init_with_output(k, jnp.zeros((2, 230))), jax.random.key(0)
    )
    assert out.shape == (2, 96, 96, 3)


def test_fit_crops_and_pads_around_the_centre():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1) * jnp.ones((1, 5, 5, 1))
    np.testing.assert_array_equal(fit(x, (3, 3, 1))[0, :, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(fit(x, (7, 7, 1))[0, :, 0, 0], [0, 0, 1, 2, 3, 4, 4])


def test_block_products_equal_the_batched_product():
    a, b = jax.random.split(jax.random.key(4))
    x, kernel = jax.random.normal(a, (5, 12)), jax.random.normal(b, (3, 4, 2))
    agree(
        lambda x, w, _: blocks.block_products(x, w),
        lambda x, w, _: blocks.block_einsum(x, w),
        x, kernel, 0,
    )  # fmt: skip
    dense = jax.scipy.linalg.block_diag(*kernel)
    np.testing.assert_allclose(blocks.block_products(x, kernel), x @ dense, rtol=1e-5, atol=1e-5)


def test_what_all_blocks_share_is_seen_by_each():
    """By hand: 2 blocks of one input each, both beside the shared value 10."""
    layer = blocks.BlockLinear(2, 2)
    kernel = jnp.array([[[2.0], [0.5]], [[3.0], [0.1]]])
    params = {"params": {"kernel": kernel, "bias": jnp.array([0.0, 100.0])}}
    got = layer.apply(params, jnp.array([[1.0, 4.0]]), jnp.array([[10.0]]))
    np.testing.assert_allclose(got, [[2 + 5, 12 + 1 + 100]], rtol=1e-6)
