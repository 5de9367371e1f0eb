"""Where imagination starts, by hand; time runs down the rows."""

import jax.numpy as jnp
import numpy as np

from dreamer_jax.agents.acting import alive, last_states


def test_imagination_starts_from_the_last_states_time_first():
    """Five records of two sequences; states are numbered 1 to 10, row by row."""
    number = jnp.arange(1.0, 11.0).reshape(5, 2)
    posterior = {"one": number, "wide": number[..., None] * jnp.array([1.0, -1.0])}
    starts = last_states(posterior, 3)
    want = np.array([5, 6, 7, 8, 9, 10])
    np.testing.assert_array_equal(starts["one"], want)
    np.testing.assert_array_equal(starts["wide"], np.stack([want, -want], axis=1))


def test_a_start_is_alive_unless_it_is_an_end():
    """Ends lie at states 1, 4, 8 and 9 of the same ten; the first two are no starts."""
    ends = jnp.zeros(10, bool).at[jnp.array([0, 3, 7, 8])].set(True).reshape(5, 2)
    #                                            5  6  7  8  9  10
    np.testing.assert_array_equal(alive(ends, 3), [1, 1, 1, 0, 0, 1])
