import numpy as np
import pytest

from models.errors import InputError
from policies.ope.intervals import Keys, lower, one_sided, poisson_counts, replicates, upper, user_keys
from policies.ope.summaries import Additive, Normalised


def keys(users: int) -> Keys:
    return user_keys(f"u{number}" for number in range(users))


def test_counts_are_poisson_seeded_and_begin_with_the_log_itself() -> None:
    counts = poisson_counts(keys(500), 400, seed=1)
    np.testing.assert_array_equal(counts[0], 1)
    drawn = counts[1:].astype(float)
    assert abs(drawn.mean() - 1) < 0.01
    assert abs(drawn.var() - 1) < 0.02
    np.testing.assert_array_equal(counts, poisson_counts(keys(500), 400, seed=1))
    assert (counts[1:] != poisson_counts(keys(500), 400, seed=2)[1:]).any()
    # e^-1, e^-1, e^-1 / 2, e^-1 / 6 of the 200,000 counts are 0, 1, 2, 3: within four standard errors
    for count, share in enumerate([0.36788, 0.36788, 0.18394, 0.06131]):
        assert abs((drawn == count).mean() - share) < 4 * np.sqrt(share * (1 - share) / drawn.size)
    # neither users nor resamples go together
    assert abs(np.corrcoef(drawn.T)[np.triu_indices(500, 1)]).max() < 0.35
    assert abs(np.corrcoef(drawn)[np.triu_indices(400, 1)]).max() < 0.3


def test_a_users_resamples_depend_on_nobody_else() -> None:
    whole, part = poisson_counts(keys(500), 50, seed=1), poisson_counts(keys(500)[[400, 7]], 50, seed=1)
    np.testing.assert_array_equal(part, whole[:, [400, 7]])


def test_replicates_agree_with_a_loop_that_renormalises() -> None:
    rng = np.random.default_rng(0)
    weighted, weight = rng.normal(size=(6, 3, 2)), rng.random((6, 3))
    observed, exposure = np.ones((6, 3)), rng.random(6) + 0.5
    counts = poisson_counts(keys(6), 20, seed=3)
    found = replicates(Normalised(weighted, weight, observed), exposure, counts)
    for b, count in enumerate(counts.astype(float)):
        if count.sum() == 0:
            continue
        total = np.zeros(2)
        for g in range(3):
            w = sum(count[u] * weight[u, g] for u in range(6))
            total += count.sum() * sum(count[u] * weighted[u, g] for u in range(6)) / w
        np.testing.assert_allclose(found[b], total / sum(count[u] * exposure[u] for u in range(6)), rtol=1e-10)


def test_a_ratio_of_totals_is_renormalised_in_each_resample() -> None:
    """Every user earns exactly 3 per unit of exposure: no resample differs, where a frozen denominator would."""
    exposure = np.array([1.0, 2.0, 5.0, 9.0])
    found = replicates(Additive(3 * exposure[:, None]), exposure, poisson_counts(keys(4), 50, seed=0))
    np.testing.assert_allclose(found[~np.isnan(found)], 3.0)


def test_a_constant_reward_has_no_interval_under_normalised_weights() -> None:
    rng = np.random.default_rng(1)
    weight = rng.exponential(size=(50, 4))
    summary = Normalised(2.0 * weight[..., None], weight, np.ones((50, 4)))
    found = replicates(summary, np.full(50, 4.0), poisson_counts(keys(50), 100, seed=0))
    np.testing.assert_allclose(found, 2.0)


def test_quantiles_are_rounded_outward_and_unbounded_where_resamples_cannot_say() -> None:
    values = np.arange(1.0, 101.0)
    # 100 values 1..100: position 0.05 * 99 = 4.95, outward to the 5th (5.0); mirrored, the 96th
    assert lower(values, 0.05) == 5.0
    assert upper(values, 0.05) == 96.0
    values[:10] = np.nan
    assert lower(values, 0.05) == -np.inf
    assert upper(values, 0.05) == np.inf
    assert lower(values, 0.2) > 11


def test_coverage_is_near_nominal_and_clusters_are_respected() -> None:
    """Users with effects of their own and 1 to 9 rows: 90% intervals hold the true mean in about 90% of 200 logs."""
    held = held_by_rows = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = rng.integers(1, 10, 120)
        effect = rng.normal(size=120)
        sums = np.array([(e + rng.normal(size=n)).sum() for e, n in zip(effect, rows, strict=True)])
        found = replicates(Additive(sums[:, None]), rows.astype(float), poisson_counts(keys(120), 200, seed))[1:, 0]
        held += lower(found, 0.05) <= 0.0 <= upper(found, 0.05)
        naive = 1.645 * np.sqrt(2 / rows.sum())
        held_by_rows += abs(sums.sum() / rows.sum()) <= naive
    assert 0.84 <= held / 200 <= 0.96
    assert held_by_rows / 200 < 0.80  # what an interval that takes rows for independent would have done


def test_intervals_shrink_with_the_root_of_the_number_of_users() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for users in (250, 4000):
        counts = poisson_counts(keys(users), 500, 0)
        found = replicates(Additive(rng.normal(size=(users, 1))), np.ones(users), counts)[1:, 0]
        widths.append(upper(found, 0.025) - lower(found, 0.025))
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_paired_differences_are_narrower_than_their_parts() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(300, 1))
    counts = poisson_counts(keys(300), 300, 0)
    one, two = (replicates(Additive(s), np.ones(300), counts)[1:, 0] for s in (base, base + 0.1))
    np.testing.assert_allclose(np.median(two - one), 0.1, atol=1e-9)
    assert np.std(two - one) < 1e-9 < np.std(one)


def test_candidates_tried_share_the_error() -> None:
    assert one_sided(0.95, 1, 1000) == pytest.approx(0.05)
    assert one_sided(0.95, 5, 1000) == pytest.approx(0.01)
    with pytest.raises(
        InputError, match=r"resamples is 1000.*100 candidates needs 2000|resamples is 1000.*needs 200[01]"
    ):
        one_sided(0.95, 100, 1000)
    with pytest.raises(InputError, match="tried is 0"):
        one_sided(0.95, 0, 1000)
