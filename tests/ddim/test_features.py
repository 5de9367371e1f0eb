import hashlib
import shlex
import sys
import zipfile
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddim_jax import inception as net_file
from ddim_jax.features import (
    FID_NET,
    FeatureNet,
    features,
    random_conv_v1,
    random_weights,
    score_name,
)
from ddim_jax.inception import INCEPTION, fold_norm, inception, pool, published_shapes, resized
from ddim_jax.metrics import frechet_distance


def scenes(n, seed=0, side=96):
    """Pictures with something in them: a bent grey band on green over a black bar."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:side, :side] / side
    out = np.empty((n, side, side, 3), np.uint8)
    for image in out:
        image[:] = (100, 200, 100)
        centre = (
            rng.uniform(0.2, 0.8) + rng.uniform(-0.4, 0.4) * rows + rng.uniform(-1, 1) * rows**2
        )
        image[np.abs(cols - centre) < 0.12] = 105
    out[:, -side // 8 :] = 0
    return out


def test_random_weights_are_the_same_everywhere():
    digest = hashlib.sha256(b"".join(x.tobytes() for pair in random_weights() for x in pair))
    assert digest.hexdigest() == (
        "bc5bcaf69eeaa50b065a013b27244915108a728e508353b819963a85bb1a4490"
    )
    for kernel, bias in random_weights():
        k, _, c_in, _ = kernel.shape
        assert np.mean(kernel[..., 1::2] ** 2) * k * k * c_in == pytest.approx(2.0, rel=0.1)  # He
        np.testing.assert_allclose(kernel[..., ::2].mean((0, 1)), 0.0, atol=1e-7)
        assert np.abs(bias).max() <= 0.5


def test_random_features_are_pinned():
    net = random_conv_v1()
    got = features(net, scenes(2))
    assert got.shape == (2, net.size) == (2, 512)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got[0, [0, 100, 200, 300, 500]],
        [-0.0902317, 0.207119, 0.142113, 0.1576, 0.0267194],
        rtol=1e-4,
    )


def test_the_first_layer_against_a_loop():
    image = scenes(1)[0]
    x = image.astype(np.float64) / 127.5 - 1.0
    kernel, bias = random_weights()[0]
    patches = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (0, 1))[::2, ::2]
    want = np.einsum("hwcij,ijco->hwo", patches, kernel) + bias
    want = np.where(want > 0, want, 0.2 * want)
    got = features(random_conv_v1(), image[None])[0]
    np.testing.assert_allclose(got[:16], want.mean((0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[16:32], want.std((0, 1)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch", [3, 64])
def test_blocks_change_nothing(batch):
    images = scenes(7, side=49)
    whole = features(random_conv_v1(), images, batch=7)
    got = features(random_conv_v1(), images, batch=batch)
    np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-5)


def test_one_program_serves_all_blocks():
    seen = []
    net = FeatureNet("made", 1, lambda x: seen.append(x.shape) or x[:, 0, 0, :1])
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    np.testing.assert_array_equal(features(net, images, 2)[:, 0], images[:, 0, 0, 0])
    assert seen == [(2, 4, 4, 3)] * 3


def test_distances_grow_with_the_damage():
    net, real = random_conv_v1(), features(random_conv_v1(), scenes(60, 1))
    fresh = scenes(60, 2)
    noise = np.random.default_rng(3).normal(size=fresh.shape)
    figures = [
        frechet_distance(real, features(net, np.clip(fresh + s * noise, 0, 255).astype(np.uint8)))
        for s in (0, 10, 40)
    ]
    assert 2 * figures[0] < figures[1] < figures[2] / 2
    upside_down = frechet_distance(real, features(net, fresh[:, ::-1]))
    assert upside_down > 2 * figures[0]  # the same colours and edges in other places


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 96, 96, 3)), "must be uint8"),
        (np.zeros((96, 96, 3), np.uint8), "must be uint8"),
        (np.zeros((2, 96, 96, 1), np.uint8), "must be uint8"),
        (np.zeros((0, 96, 96, 3), np.uint8), "n >= 1"),
        (np.zeros((2, 48, 96, 3), np.uint8), "48x96 are too small"),
        (np.zeros((2, 3, 96, 3), np.uint8), "3x96 are too small"),
    ],
)
def test_odd_pictures_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        features(random_conv_v1(), images)


def test_a_batch_holds_something():
    with pytest.raises(ValueError, match="batch"):
        features(random_conv_v1(), scenes(1), batch=0)


def test_the_score_has_the_nets_name():
    assert score_name(random_conv_v1()) == "Frechet distance (random-conv-v1)"
    assert score_name(FeatureNet(FID_NET, 2048, None)) == "FID"


# Inception-v3


def test_the_published_shapes():
    shapes = published_shapes()
    kernels = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    trained = {name: shape for name, shape in shapes.items() if "running" not in name}
    assert len(kernels) == 94 and len(shapes) == 5 * 94
    # Independently known: Keras counts 21 768 352 trainable figures, 17 216 of them offsets;
    # torchvision 27 161 264, of them 3 326 696 in the auxiliary and 2 049 000 in the last layer.
    assert sum(map(np.prod, kernels.values())) == 21_768_352 - 17_216
    assert sum(map(np.prod, trained.values())) == 27_161_264 - 3_326_696 - 2_049_000
    assert shapes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert shapes["Mixed_6e.branch7x7dbl_2.conv.weight"] == (192, 192, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3a.conv.weight"] == (384, 384, 1, 3)
    assert shapes["Mixed_7c.branch1x1.conv.weight"] == (320, 2048, 1, 1)


def test_sizes_at_the_published_widths():
    def weight(name):
        out, c_in, *kernel = published_shapes()[f"{name}.conv.weight"]
        struct = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        return struct((*kernel, c_in, out)), struct((out,))

    names = [n.removesuffix(".conv.weight") for n in published_shapes() if n.endswith("v.weight")]
    weights = {name: weight(name) for name in names}
    images = jax.ShapeDtypeStruct((5, 96, 96, 3), jnp.uint8)

    def maps(weights, images):
        x, out = resized(images), []
        for part in INCEPTION.parts:
            x = net_file.run(part, weights, x)
            out.append(x)
        return out

    shapes = [x.shape[1:] for x in jax.eval_shape(maps, weights, images)]
    assert shapes[:3] == [(149, 149, 32), (147, 147, 32), (147, 147, 64)]
    assert shapes[6:8] == [(35, 35, 192), (35, 35, 256)]
    assert shapes[10] == (17, 17, 768)
    assert shapes[-3:] == [(8, 8, 1280), (8, 8, 2048), (8, 8, 2048)]
    assert jax.eval_shape(net_file._apply, weights, images).shape == (5, 2048)


def test_fid_pools_by_maximum_in_the_last_block_only():
    kinds = [part.parts[-1].parts[0].kind for part in INCEPTION.parts[7:]]
    #        A x 3        B          C x 4        D          E
    assert kinds == ["mean"] * 3 + ["halve"] + ["mean"] * 4 + ["halve"] + ["mean", "max"]


def test_pools_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    # The corner's mean is over the 4 pixels that exist: (0 + 1 + 3 + 4) / 4
    np.testing.assert_allclose(
        pool(x, "mean")[0, :, :, 0], [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]
    )
    np.testing.assert_allclose(pool(x, "max")[0, :, :, 0], [[4, 5, 5], [7, 8, 8], [7, 8, 8]])
    np.testing.assert_allclose(pool(-x, "max")[0, 2, 2, 0], -4.0)  # the border is not 0
    assert pool(jnp.zeros((1, 7, 7, 2)), "halve").shape == (1, 3, 3, 2)


def test_one_layer_by_hand():
    # Kernel [[1, 2]] over a row 1, 3, 5: sums 1 + 6 = 7 and 3 + 10 = 13, then zeros beyond.
    # Normalised with mean 3, variance 4 - 1e-3, gamma 2, beta -5: (y - 3) / 2 * 2 - 5 = y - 8.
    kernel = np.array([[[[1.0, 2.0]]]])
    folded, bias = fold_norm(kernel, *(np.array([v]) for v in (2.0, -5.0, 3.0, 4.0 - 1e-3)))
    node = net_file.Conv("x", 1, (1, 2), 1, "VALID")
    x = jnp.array([1.0, 3.0, 5.0]).reshape(1, 1, 3, 1)
    got = net_file.run(node, {"x": (folded, bias)}, x)
    np.testing.assert_allclose(got.ravel(), [0.0, 5.0], atol=1e-6)  # ReLU(-1), 5


def test_resizing_is_bilinear_between_pixel_centres():
    row = np.array([0, 100, 40, 255], np.uint8)
    image = np.broadcast_to(row[None, :, None], (4, 4, 3))
    at = (np.arange(299) + 0.5) * 4 / 299 - 0.5
    want = np.interp(at, np.arange(4), row) / 127.5 - 1.0  # flat beyond the outer centres
    got = resized(jnp.asarray(image)[None])[0]
    np.testing.assert_allclose(got[17, :, 1], want, atol=1e-5)
    np.testing.assert_allclose(got[:, 200, 2], want[200], atol=1e-5)


def small_file():
    """The net with every width divided by 32, and weights that need no random numbers."""
    tensors, count = {}, 0
    for name, shape in published_shapes().items():
        thin = tuple(n // 32 if n >= 32 else n for n in shape)
        size = int(np.prod(thin))
        values = np.sin(np.arange(count, count + size) ** 2.0).reshape(thin)
        count += size
        if len(shape) == 4:
            values *= np.sqrt(4.0 / np.prod(thin[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            values = 1.0 + values / 2.0
        else:
            values /= 10.0
        tensors[name] = values.astype(np.float32)
    return tensors


def saved(folder, tensors):
    path = folder / "made.npz"
    np.savez(path, **tensors)
    return path


def test_a_small_made_file_gives_features(tmp_path):
    net = inception(saved(tmp_path, small_file()))
    assert (net.name, net.size) == ("inception-v3-width-64", 64)
    got = features(net, scenes(2), batch=2)
    assert got.shape == (2, 64) and (got >= 0).all() and np.abs(got[0] - got[1]).max() > 1e-3
    # Pinned when the same table, at its full widths, agreed with Keras' Inception-v3 to 1e-5.
    np.testing.assert_allclose(
        got[0, [0, 15, 30, 45, 63]], [0.266091, 0.133349, 0.27388, 0.100979, 0.169297], rtol=1e-3
    )


def test_the_command_of_the_remedy_makes_such_a_file(tmp_path, monkeypatch):
    wrapped = {name: SimpleNamespace(numpy=lambda x=x: x) for name, x in small_file().items()}
    torch = SimpleNamespace(load=lambda path, weights_only: wrapped)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.chdir(tmp_path)
    python, option, script = shlex.split(net_file.CONVERT)
    assert (python, option) == ("python", "-c")
    exec(script, {})
    assert inception("inception.npz").size == 64


def test_only_the_published_shapes_are_fids():
    shapes = published_shapes()
    assert net_file.net_name({**shapes, "fc.weight": (1008, 2048)}, 2048) == FID_NET
    assert net_file.net_name(shapes, 2048) == "inception-v3-width-2048"


def test_what_the_features_do_not_need_is_let_pass(tmp_path):
    extra = {
        "fc.weight": np.zeros((1008, 64), np.float32),
        "fc.bias": np.zeros(1008, np.float32),
        "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0),
    }
    assert inception(saved(tmp_path, small_file() | extra)).size == 64


NAME = "Mixed_6c.branch7x7_2"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{NAME}.conv.weight": None}, f"tensor {NAME}.conv.weight is missing"),
        ({f"{NAME}.bn.bias": None, "Mixed_7c.branch1x1.bn.bias": None}, f"{NAME}.bn.bias is miss"),
        ({f"{NAME}.conv.weight": np.zeros((5, 5, 7, 1))}, r"\[5, 5, 7, 1\] and not float"),
        ({f"{NAME}.conv.weight": np.zeros((5, 4, 1, 7))}, r"\['any', 5, 1, 7\]"),
        ({f"{NAME}.bn.running_mean": np.zeros(6)}, r"running_mean is float64 \[6\]"),
        ({f"{NAME}.bn.weight": np.zeros(5, int)}, r"bn.weight is int64"),
        ({f"{NAME}.bn.weight": np.full(5, np.nan)}, "bn.weight has values that are not finite"),
        ({f"{NAME}.bn.running_var": np.full(5, -0.1)}, "running_var has .* negative variance"),
        ({"AuxLogits.conv0.conv.weight": np.zeros(1)}, "AuxLogits.* does not belong"),
        ({"fc.weight": np.zeros((1000, 64))}, "fc.weight has 1000 classes and not 1008"),
        ({f"{NAME}.bn.bias": np.array([None] * 5)}, "cannot be read as .npz without pickles"),
    ],
)
def test_odd_files_are_refused_with_name_and_remedy(tmp_path, change, words):
    tensors = small_file() | change
    path = saved(tmp_path, {name: x for name, x in tensors.items() if x is not None})
    with pytest.raises(ValueError, match=words) as caught:
        inception(path)
    assert str(path) in str(caught.value) and "numpy.savez('inception.npz'" in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "array", "archive"])
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / "odd.npz"
    if kind == "text":
        path.write_text("weights")
    elif kind == "empty":
        path.touch()
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "archive":  # what torch.save writes
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", b"...")
    with pytest.raises(ValueError, match=r"odd\.npz: .*Make the file with: python -c"):
        inception(path)
