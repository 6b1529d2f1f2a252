"""The forward pass in NumPy is that of torch."""

import numpy as np
import pytest

from models.forward import Networks
from models.fqe import fit_fqe


@pytest.fixture(scope="module")
def fitted(world):
    table = world.log()
    ahead = np.zeros((2, *table.legal.shape), dtype=np.float32)
    rows = np.ones((2, len(table.user)), dtype=bool)
    rows[1, ::2] = False
    extra = np.linspace(0, 9, len(table.user), dtype=np.float32)[:, None]
    extra[3] = np.nan
    found = fit_fqe(table, rows, ahead, steps=40, gamma_per_day=None, extra_state=extra, seed=0, hidden=(16, 8))
    return found, np.concatenate([table.state, extra], axis=1)


def test_numpy_and_torch_agree(fitted) -> None:
    found, state = fitted
    q, networks = found(), found.networks()
    for member in range(2):
        np.testing.assert_allclose(networks(member, state), q[member], rtol=1e-5, atol=1e-5)
    assert np.abs(q[0] - q[1]).max() > 1e-3


def test_how_many_rows_are_asked_about_together_does_not_show(fitted) -> None:
    found, state = fitted
    networks = found.networks()
    one_by_one = np.concatenate([networks(0, row[None]) for row in state[:50]])
    np.testing.assert_allclose(one_by_one, networks(0, state)[:50], rtol=1e-12, atol=1e-12)
    assert networks(0, state[:0]).shape == (0, *found()[0].shape[1:])


def test_golden_pass() -> None:
    """Two features, the second unknown; one hidden unit: h = relu(2 (3 - 1) / 4 + 0.5) = 1.5, heads (1.5, -1.5 + 1)."""
    single = {"mean": [1.0, 7.0], "std": [4.0, 1.0], "shift": [10.0], "scale": [2.0]}
    networks = Networks(
        weights=(np.array([[[2.0], [5.0]]], np.float32), np.array([[[1.0, -1.0]]], np.float32)),
        biases=(np.array([[[0.5]]], np.float32), np.array([[[0.0, 1.0]]], np.float32)),
        **{name: np.array(value, np.float32) for name, value in single.items()},
        actions=2,
    )
    np.testing.assert_allclose(networks(0, np.array([[3.0, np.nan]], np.float32)), [[[13.0], [9.0]]])
