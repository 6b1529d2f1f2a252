"""Units, and the logs that have none."""

import numpy as np
import pytest

from models.errors import InputError
from models.scaling import Units


def test_scales_are_those_of_the_marked_rows(table_of) -> None:
    table = table_of([0, 0, 0, 0], state=[[1.0], [3.0], [np.nan], [100.0]], reward=[[0, 4], [2, 4], [4, 4], [50, 5]])
    rows = np.array([True, True, True, False])
    found = Units.of(table, rows).weighed({"r0": 3.0})
    assert found.mean.tolist() == [2.0]  # of 1 and 3: the unknown is left out
    assert found.std.tolist() == [1.0]
    assert found.sigma.tolist() == [pytest.approx((8 / 3) ** 0.5), 1.0]  # r1 is constant and weighs nothing
    assert found.reward_sd == pytest.approx(3 * (8 / 3) ** 0.5)
    # w~ = 3 sd(r0) / sd(3 r0) = 1: the same whatever the unit of r0.
    assert found.inner.tolist() == [pytest.approx(1.0), 0.0]


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        ({"state": [[5.0, 1.0], [5.0, 2.0]]}, {"r0": 1.0}, r"features: 'f0' is always 5 in 2 training rows.*remove it"),
        ({"state": [[np.nan, 1.0], [np.nan, 2.0]]}, {"r0": 1.0}, r"features: 'f0' is always unknown.*remove it"),
        ({"state": [[np.nan, 1.0], [7.0, 2.0]]}, {"r0": 1.0}, r"features: 'f0' is always 7"),
        ({"reward": [[2.0, 0.0], [2.0, 1.0]]}, {"r0": 1.0}, r"train.weights.r0 is 1.0, but reward r0 is 2 in all 2"),
        ({"reward": [[1.0, -1.0], [2.0, -2.0]]}, {"r0": 1.0, "r1": 1.0}, r"components cancel"),
        ({}, {"clicks": 1.0}, r"train.weights: 'clicks' is not a reward component \(known: r0, r1\)"),
    ],
)
def test_a_log_that_tells_nothing_is_refused(table_of, change, weights, message) -> None:
    plain = {"state": [[0.0, 1.0], [1.0, 2.0]], "reward": [[0.0, 1.0], [1.0, 5.0]]}
    table = table_of([0, 0], **{**plain, **change})
    with pytest.raises(InputError, match=message):
        Units.of(table, np.ones(2, dtype=bool)).weighed(weights)
