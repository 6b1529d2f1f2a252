"""The coverage study in small: what it writes, that its truth and targets are what they say, and one real check."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from benchmarks.coverage import BANDS, app
from benchmarks.coverage_found import Found, found_of
from benchmarks.coverage_log import CURVE_EVERY, KINDS, METRICS, OTHERS, SOUND, Setting, evaluated, find_kappas
from benchmarks.coverage_page import write_page
from benchmarks.coverage_truth import Moments, moments, truth_of
from models.errors import InputError
from policies.simulator import SimulatorConfig, true_values

USERS, DAYS, LOGS = 500, 7, 12
SHARES = tuple(aim for _, _, aim in BANDS.values())


@pytest.fixture(scope="module")
def setting() -> Setting:
    kappas = find_kappas(Setting(USERS, DAYS), SHARES, range(901, 903))
    return Setting(USERS, DAYS, kappas, bands=len(BANDS), few=200)


@pytest.fixture(scope="module")
def found(setting: Setting) -> Found:
    worlds = {3: moments(setting, 701, 20_000, 3), 0: moments(setting, 702, 20_000, 0)}
    bands = {name: (low, high) for name, (low, high, _) in BANDS.items()}
    said = [evaluated(setting, seed) for seed in range(1, LOGS + 1)]
    return found_of(setting, bands, truth_of(worlds, 3), said)


def test_targets_keep_the_share_of_users_that_was_asked_for(setting: Setting, found: Found) -> None:
    assert setting.kappas == tuple(sorted(setting.kappas))
    for (least, most, _), share in zip(BANDS.values(), np.nanmean(found.every.ess / USERS, axis=0), strict=True):
        assert least < share < most


def test_beyond_the_deterministic_policy_there_is_one_target() -> None:
    assert find_kappas(Setting(60, 3), (0.9, 0.0, 0.001), [1])[1:] == (1.0,)


def test_intervals_of_the_sound_hold_the_truth_and_one_step_does_not(found: Found) -> None:
    """Of 95% intervals over 12 logs, 6 metrics and 2 kinds a band and estimator hold nearly all.

    Errors of one log are correlated over metrics, so a mean over the 144 intervals has a standard error of perhaps 3
    points. One-step weights leave out what earlier actions would have changed: far fewer of theirs hold it.
    """
    covered = found.coverage()
    assert covered.shape == (3, len(SOUND + OTHERS), 2, len(METRICS))
    sound = covered[:, : len(SOUND)].mean(axis=(2, 3))
    assert (sound > 0.86).all(), sound
    assert sound.mean() < 1.0
    assert found.on_policy().mean() > 0.86
    one_step = covered[:, (SOUND + OTHERS).index("ips"), KINDS.index("difference")]
    assert one_step[2].mean() < 0.8 < sound[2].mean()
    # Means over logs: within four standard errors of the truth.
    error = np.abs(found.bias()) / (found.spread() / np.sqrt(LOGS))
    assert (error[:, : len(SOUND)] < 5).all()
    assert error[2, (SOUND + OTHERS).index("ips")].max() > 10


def test_coverage_counts_what_lies_within_both_ends(found: Found) -> None:
    moved = replace(found.truth, targets=found.truth.targets + 1e9)
    assert np.nanmax(replace(found, truth=moved).coverage()) == 0.0
    figures = found.every.figures[:3].copy()
    figures[0, 0, 0, 0, 0] = [1.0, -1e9, 1e9]
    figures[1, 0, 0, 0, 0] = [1.0, 1e9, 2e9]
    figures[2, 0, 0, 0, 0] = np.nan
    changed = replace(found, every=replace(found.every, figures=figures)).coverage()[0, 0, 0, 0]
    assert changed == 0.5, "of the two logs that say something, one"


def test_truth_is_that_of_the_simulator(setting: Setting) -> None:
    """One world: values, differences and their errors as `true_values` gives them, by another road."""
    config = setting.config.simulate
    assert config is not None
    decide = setting.decide(setting.kappas[1])
    theirs = true_values(replace(config, truth_users=2_000), 5, {"target": decide})
    only = replace(setting, kappas=(setting.kappas[1],))
    ours = truth_of({1: moments(only, 5, 2_000, 1)}, 1)
    for metric, name in enumerate(METRICS):
        wanted = theirs["target"][name]
        np.testing.assert_allclose(ours.targets[0, 0, metric], [wanted["value"], wanted["standard_error"]], rtol=1e-9)
        np.testing.assert_allclose(
            ours.targets[0, 1, metric], [wanted["difference"], wanted["difference_standard_error"]], rtol=1e-7
        )
        logging = theirs["logging"][name]
        np.testing.assert_allclose(ours.logging[metric], [logging["value"], logging["standard_error"]], rtol=1e-9)


def test_more_users_of_the_logging_policy_sharpen_every_value_and_no_difference(setting: Setting) -> None:
    paired, alone = moments(setting, 5, 3_000, 3), moments(setting, 6, 9_000, 0)
    few, more = truth_of({3: paired}, 3), truth_of({3: paired, 0: alone}, 3)
    np.testing.assert_array_equal(few.targets[:, 1], more.targets[:, 1])
    shrunk = more.logging[:, 1] / few.logging[:, 1]
    np.testing.assert_allclose(shrunk, 0.5, atol=0.1)
    assert (more.targets[:, 0, :, 1] < few.targets[:, 0, :, 1]).all()
    assert (few.users, few.logging_users, more.logging_users) == ((3_000,) * 3, 3_000, 12_000)
    halves = moments(setting, 5, 3_000, 3) + Moments.none(4)
    np.testing.assert_array_equal(halves.second, paired.second)


def test_the_floor_is_where_coverage_holds_from_there_on(found: Found) -> None:
    """Of 450, 200 and 75 effective users of all, and 180, 80 and 30 of the few: what holds again below is no floor."""
    truth = replace(found.truth, targets=np.zeros_like(found.truth.targets))
    figures = np.tile([0.0, -1.0, 1.0], (*found.every.figures.shape[:-1], 1))

    def floor(every: NDArray[np.float64], few: NDArray[np.float64]) -> dict[str, float | None]:
        asked = [
            replace(found.every, figures=each, ess=np.tile(ess, (LOGS, 1)))
            for each, ess in ((every, [450.0, 200.0, 75.0]), (few, [180.0, 80.0, 30.0]))
        ]
        return dict(replace(found, truth=truth, every=asked[0], few=asked[1]).summary(judged=False)["floor"])

    assert floor(figures, figures) == dict.fromkeys(SOUND, 30.0)
    every, few, missed = figures.copy(), figures.copy(), [5.0, 4.0, 6.0]
    every[:, 2, SOUND.index("dr")] = missed
    every[:, 1, SOUND.index("wdr")] = missed
    every[:, 0, SOUND.index("pdis")] = missed
    few[:, 0, SOUND.index("wpdis")] = missed
    assert floor(every, few) == {"pdis": None, "wpdis": 200.0, "dr": 80.0, "wdr": 450.0}


def test_the_few_are_some_of_the_users(setting: Setting, found: Found) -> None:
    # In one log a user with half of the weight may be among the others.
    assert (np.nanmean(found.few.ess, axis=0) < np.nanmean(found.every.ess, axis=0)).all()
    asked = [found.few.ess[seed - 1] for seed in range(1, LOGS + 1) if seed % CURVE_EVERY == 0]
    assert (np.array(asked) <= setting.few).all()
    assert np.isnan(found.few.ess).sum() == (LOGS - len(asked)) * len(SHARES)
    width = found.few.figures[..., 2] - found.few.figures[..., 1]
    whole = found.every.figures[..., 2] - found.every.figures[..., 1]
    dr = SOUND.index("dr")
    # 500 users against 200: intervals about sqrt(2.5) as wide.
    assert 1.2 < np.nanmedian(width[:, :, dr] / whole[:, :, dr]) < 2.1
    assert np.isnan(found.few.figures[:, :, (SOUND + OTHERS).index("ips")]).all()


def test_a_missed_cell_is_named_and_only_where_it_is_judged(found: Found) -> None:
    judged = found.summary(judged=True)
    assert judged["misses"], "a hundred cells of twelve logs do not all lie between 92 and 98%"
    assert any("disables" in miss and "fewer than 100" in miss for miss in judged["misses"])
    estimator, rest = judged["misses"][0].split(", ", 1)
    cell = rest.split(":")[0]
    assert not 0.92 <= judged["coverage"][estimator][cell] <= 0.98
    assert found.summary(judged=False)["misses"] == []
    cells = judged["coverage"]
    assert len(cells["on_policy"]) == len(METRICS)
    assert all(len(cells[name]) == len(BANDS) * 2 * len(METRICS) for name in SOUND)
    assert set(judged["biased"]) == set(OTHERS)


def test_the_command_writes_its_summary_and_page(tmp_path: Path) -> None:
    (tmp_path / "coverage.md").write_text(
        "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("setting", "bands", "cells", "misses"))
        + "".join(f"<!-- {name} -->\n<!-- /{name} -->\nkept\n" for name in ("others", "overlap", "floor"))
    )
    sizes = {"logs": [2], "users": [120], "few": [60], "days": [5], "worlds": [1, 1, 1], "processes": [1]}
    options = [text for name, values in sizes.items() for text in (f"--{name}", *map(str, values))]
    done = CliRunner().invoke(app, [*options, "--out", str(tmp_path), "--docs", str(tmp_path)])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["logs"] == 2
    assert summary["judged"] is False
    assert {"coverage", "biased", "overlap", "mean_coverage", "seconds", "threads", "seeds"} <= summary.keys()
    starts = [first for first, _ in summary["seeds"].values()]
    assert len({*starts}) == 3
    page = (tmp_path / "coverage.md").read_text()
    assert "old" not in page
    assert page.count("kept") == 3
    assert "| pdis |" in page
    assert (tmp_path / "coverage.svg").read_text().count("<svg") == 1
    (tmp_path / "coverage.md").write_text("nothing")
    with pytest.raises(InputError, match="no place for setting"):
        write_page(tmp_path, summary)
    with pytest.raises(InputError, match="not there; name the folder"):
        write_page(tmp_path / "elsewhere", summary)


def test_the_study_has_a_world_of_its_own() -> None:
    config = Setting(USERS, DAYS).config.simulate
    assert config == SimulatorConfig(users=USERS, days=DAYS, epsilon=0.8)
