"""Spaces of all kinds as pictures, vectors and actions, by hand."""

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from envs.conversions import action_map, observation_parts, picture


def test_stretched_actions_stay_within_bounds_that_float32_cannot_hold():
    space = spaces.Box(np.float32(-0.1), np.float32(0.7), (3,), np.float32)
    convert = action_map(space).convert
    for value in (-1.0, 0.3, 1.0):
        assert space.contains(convert(np.full(3, value, np.float32)))


def test_the_largest_entry_is_the_choice():
    choose = action_map(spaces.Discrete(3, start=-1))
    assert choose.discrete and choose.size == 3
    assert [choose.convert(np.array(x)) for x in ([0, 0, 1], [-0.9, -0.5, -0.7])] == [1, 0]


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([32, 33]),
        spaces.MultiBinary(11),
        spaces.Box(0, 5, (2,), np.int64),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_actions_of_other_kinds_are_refused_by_name(space):
    with pytest.raises(ValueError, match=r"action space: .*ActionWrapper") as error:
        action_map(space)
    assert str(space) in str(error.value)


def test_observations_of_other_kinds_are_refused_by_name():
    space = spaces.Dict({"box": spaces.Box(0, 1, (2,)), "mission": spaces.Text(5)})
    with pytest.raises(ValueError, match=r"'mission' is Text.*ObservationWrapper"):
        observation_parts(space)
    twice = spaces.Dict({"a_b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})})
    with pytest.raises(ValueError, match="two entries are called 'a_b'"):
        observation_parts(twice)


def test_what_is_no_picture_is_a_vector():
    for box, name, shape in (
        (spaces.Box(0, 255, (8, 6), np.uint8), "image", (8, 6, 1)),
        (spaces.Box(0, 255, (128,), np.uint8), "vector", (128,)),
        (spaces.Box(0, 1, (4, 4, 3), np.float32), "vector", (48,)),
        (spaces.Box(0, 255, (2, 4, 4, 3), np.uint8), "vector", (96,)),
    ):
        ((found, part),) = observation_parts(box).items()
        assert (found, part.box.shape) == (name, shape)
        assert part.box.contains(part.take(box.sample()))


def test_pictures_are_resized_channel_by_channel():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    made = picture(image, 5)
    assert made.shape == (5, 5, 3) and made.dtype == np.uint8
    whole = Image.fromarray(image).resize((5, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(made, whole)
    np.testing.assert_array_equal(picture(image[..., 0], 5)[..., 0], made[..., 0])
    assert picture(image) is image
    part = observation_parts(spaces.Box(0, 255, (9, 12, 3), np.uint8), size=5)["image"]
    np.testing.assert_array_equal(part.take(image), made)


def test_pictures_with_channels_first_are_turned():
    space = spaces.Box(0, 255, (3, 20, 24), np.uint8)
    image = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 20, 24), np.uint8)
    for size, shape in ((0, (20, 24, 3)), (10, (10, 10, 3))):
        part = observation_parts(space, size)["image"]
        assert part.box.shape == shape == part.take(image).shape
        np.testing.assert_array_equal(part.take(image)[5, 5], [0, 1, 2])
    for shape in ((4, 6, 3), (20, 24, 3), (16, 16, 16), (20, 20, 20)):  # as it was
        assert observation_parts(spaces.Box(0, 255, shape, np.uint8))["image"].box.shape == shape


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (2.0, np.inf, (2, 4)),
        (-np.inf, -3.0, (-5, -3)),
        (0.0, 3.4e38, (0, 2)),
        (-1e6, 5.0, (3, 5)),
        (2e6, 3e6, (2e6, 2e6 + 2)),
        (-1e5, 1e5, (-1e5, 1e5)),
        (-3.4e38, 3.4e38, (-1, 1)),
        (-1e6, np.inf, (-1, 1)),
    ],
)
def test_actions_move_between_bounds_of_which_one_or_both_are_missing(low, high, ends):
    space = spaces.Box(low, high, (2,), np.float64)
    convert = action_map(space).convert
    np.testing.assert_allclose(convert(np.array([-1.0, 1.0])), ends)
    np.testing.assert_allclose(convert(np.zeros(2)), np.mean(ends))


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([3, 2, 4]),
        spaces.MultiDiscrete(np.array([[2, 3], [1, 2]]), start=np.array([[5, 0], [-1, 2]])),
        spaces.MultiDiscrete([32, 32]),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 2)),
    ],
)
def test_few_joint_choices_are_one(space):
    choose = action_map(space)
    actions = [choose.convert(row) for row in np.eye(choose.size, dtype=np.float32)]
    assert choose.discrete and all(space.contains(action) for action in actions)
    assert len({action.tobytes() for action in actions}) == choose.size
    sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(space.shape, 2)
    assert choose.size == np.prod(sizes)


def test_of_joint_choices_the_last_is_the_quickest():
    dials = action_map(spaces.MultiDiscrete([3, 2, 4], start=[10, 0, 0]))
    for index, want in ((0, [10, 0, 0]), (3, [10, 0, 3]), (4, [10, 1, 0]), (23, [12, 1, 3])):
        assert dials.convert(np.eye(24)[index]).tolist() == want
    switches = action_map(spaces.MultiBinary(3))
    assert switches.convert(np.eye(8)[6]).tolist() == [1, 1, 0]


def only_part(space, size=0):
    ((name, part),) = observation_parts(space, size).items()
    return name, part


def test_a_grid_of_small_numbers_is_one_hot():
    """Unlike brightness, whose neighbours are alike."""
    space = spaces.Box(0, 10, (7, 7, 3), np.uint8)
    name, part = only_part(space, 64)
    assert (name, part.box.shape) == ("vector", (7 * 7 * 3 * 11,))
    grid = space.sample()
    seen = part.take(grid)
    assert part.box.contains(seen)
    np.testing.assert_array_equal(seen.reshape(7, 7, 3, 11).argmax(-1), grid)
    assert seen.sum() == grid.size


def test_a_grid_of_unequal_highs_by_hand():
    space = spaces.Box(np.uint8(0), np.array([[2, 0], [1, 3]], np.uint8), dtype=np.uint8)
    _, part = only_part(space)
    grid = np.array([[1, 0], [0, 3]], np.uint8)
    assert part.take(grid).tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 0, 1]  # of 3, 1, 2 and 4
    assert part.take(grid + np.uint8(9)).sum() == 4  # numbers that were not announced


def test_other_grids_are_shares_of_their_highs():
    planes = spaces.Box(0, 1, (10, 10, 4), np.uint8)
    name, part = only_part(planes, 64)
    grid = planes.sample()
    assert (name, part.box.shape) == ("vector", (400,))
    np.testing.assert_array_equal(part.take(grid), grid.reshape(-1))
    heights = spaces.Box(0, 100, (9, 9), np.uint8)  # 81 * 101 > 4096
    _, part = only_part(heights)
    assert part.box.shape == (81,)
    np.testing.assert_array_equal(part.take(np.full((9, 9), 25)), np.full(81, np.float32(0.25)))
    (named,) = observation_parts(spaces.Dict({"map": heights}))
    assert named == "map"


@pytest.mark.parametrize(
    ("space", "white"),
    [
        (spaces.Box(0, 1, (16, 24, 3), np.float32), 1.0),
        (spaces.Box(0, 1, (16, 24, 4), np.float64), 1.0),
        (spaces.Box(0, 255, (16, 24, 1), np.int64), 255),
        (spaces.Box(0, 255, (8, 9, 3), np.float32), 255.0),
        (spaces.Box(0, 1, (84, 32), np.float32), 1.0),
        (spaces.Box(0, 255, (40, 32), np.int32), 255),
    ],
)
def test_brightness_of_other_types_is_a_picture(space, white):
    name, part = only_part(space)
    channels = (space.shape[2:] or (1,))[0]
    made = (*space.shape[:2], channels)
    assert (name, part.box) == ("image", spaces.Box(0, 255, made, np.uint8))
    for share, want in ((0.0, 0), (0.2, 51), (1.0, 255), (1.1, 255)):
        values = np.full(space.shape, share * white).astype(space.dtype)
        seen = part.take(values)
        assert seen.dtype == np.uint8 and (seen == want).all()
    assert only_part(space, 12)[1].take(space.sample()).shape == (12, 12, channels)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((3, 16, 16), (16, 16, 3)),
        ((20, 84, 84), (84, 84, 20)),  # a long stack
        ((4, 84, 84), (84, 84, 4)),
        ((16, 16, 3), (16, 16, 3)),
        ((64, 64, 32), (64, 64, 32)),
        ((64, 64, 4), (64, 64, 4)),
        ((4, 8, 1), (4, 8, 1)),
    ],
)
def test_the_axis_of_channels_is_told_by_its_size(shape, seen):
    _, part = only_part(spaces.Box(0, 255, shape, np.uint8))
    assert part.box.shape == seen


def test_brightness_with_channels_first_is_turned():
    space = spaces.Box(0, 1, (3, 20, 24), np.float32)
    image = np.arange(3, dtype=np.float32)[:, None, None] / 2 * np.ones((1, 20, 24), np.float32)
    name, part = only_part(space)
    assert (name, part.box.shape) == ("image", (20, 24, 3))
    np.testing.assert_array_equal(part.take(image)[5, 5], [0, 128, 255])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (16, 16, 3), np.float32),
        spaces.Box(0, 1, (16, 16), np.float32),
        spaces.Box(0, 1, (16, 16, 2), np.float32),
        spaces.Box(0, 1, (16, 7, 3), np.float32),
        spaces.Box(0, 1, (16, 16, 3), np.int64),
        spaces.Box(0, np.inf, (16, 16, 3), np.float32),
    ],
)
def test_numbers_of_other_kinds_are_no_picture(space):
    name, part = only_part(space)
    assert (name, part.box.shape) == ("vector", (np.prod(space.shape),))
    value = space.sample()
    np.testing.assert_array_equal(part.take(value), value.reshape(-1).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "white"), [(np.uint8, 255), (np.float32, 1.0)], ids=["uint8", "float32"]
)
def test_stacked_frames_are_channels(dtype, white):
    frames = np.random.default_rng(0).integers(0, 256, (4, 12, 14, 3))
    values = (frames * (white / 255)).astype(dtype)
    name, part = only_part(spaces.Box(0, white, values.shape, dtype))
    assert (name, part.box.shape) == ("image", (12, 14, 12))
    wanted = np.concatenate(list(frames), -1)
    np.testing.assert_array_equal(part.take(values), wanted)
    first = np.moveaxis(values, -1, 1)
    _, turned = only_part(spaces.Box(0, white, first.shape, dtype))
    np.testing.assert_array_equal(turned.take(first), wanted)
    _, small = only_part(spaces.Box(0, white, values.shape, dtype), 9)
    assert small.take(values).shape == (9, 9, 12)


def test_many_numbers_are_warned_of_and_many_kinds_refused():
    for space, number in (
        (spaces.Box(-1, 1, (64, 64, 3)), 12288),
        (spaces.Box(0, 9, (64, 64, 3), np.uint8), 12288),
        (spaces.MultiBinary(10_001), 10001),
    ):
        with pytest.warns(UserWarning, match=rf"'cells'.*vector of {number} numbers") as warned:
            part = observation_parts(spaces.Dict({"cells": space}))["cells"]
        assert part.box.shape == (number,) and "\n" not in str(warned[0].message)
    for space in (spaces.Discrete(1_000_000), spaces.MultiDiscrete([9_999, 2])):
        with pytest.raises(ValueError, match=r"'state', .*Wrapper") as error:
            observation_parts(spaces.Dict({"state": space}))
        assert str(space) in str(error.value)
    assert observation_parts(spaces.Discrete(10_000))["vector"].box.shape == (10_000,)


def test_a_tiny_picture_that_is_enlarged_is_warned_of():
    space = spaces.Dict({"view": spaces.Box(0, 255, (7, 7, 3), np.uint8)})
    with pytest.warns(UserWarning, match="'view', 7x7, is enlarged to 64x64.*Box's high"):
        observation_parts(space, 64)
    observation_parts(space)
