"""A quota of sends is met in expectation by one price within the gated range, or the word is why not."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from pipelines.config import Config, validate
from pipelines.etl.features import HOUR
from pipelines.scoring.rounds import Price
from tests.pipelines.hostile import PLAN, Row, a_log, tree
from tests.pipelines.scoring.candidates import candidate, judged
from tests.pipelines.scoring.nights import champion_for, configured, lake, rows_of, score, write_candidates
from tests.pipelines.scoring.test_scoring_rounds import NOON

DECISION = {"rollout_share": 0.95, "exploration": 0.05}
RANGE = {**DECISION, "lambda": 0.0, "lambda_low": -2.0, "lambda_high": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quota")
    lake(folder)
    return folder


def crowd(rng: random.Random, users: int, most: int) -> list[Row]:
    """Users of the log and many new ones, with up to `most` candidates each."""
    rows = []
    for user in range(users):
        for number in range(rng.randint(1, most)):
            at = NOON + rng.randrange(40) * HOUR // 4
            rows.append(candidate(f"u{user}", f"c{user}-{number}", at, **{"context:relevance": rng.random()}))
    return rows


def expected_sends(config: Config) -> float:
    return float(sum(sum(row["probabilities"][1:]) for row in rows_of(config).values()))


def check_met(config: Config, found: dict[str, Any], quota: float) -> None:
    assert found["budget"]["quota"] == pytest.approx(quota)
    assert found["budget"]["met"], found["budget"]
    assert found["budget"]["reason"] == ""
    assert abs(found["expected_sends"] - quota) <= max(0.005 * quota, 1)
    assert found["expected_sends"] == pytest.approx(expected_sends(config), abs=1e-6)
    assert found["budget"]["expected_sends"] == pytest.approx(found["expected_sends"], abs=1e-4)
    assert RANGE["lambda_low"] <= found["lambda"] <= RANGE["lambda_high"]


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
@pytest.mark.parametrize(("most", "steps"), [(1, 0.0), (1, 0.5), (4, 0.0), (4, 0.5)], ids=str)
def test_a_share_of_thousands_is_met(folder: Path, share: float, most: int, steps: float) -> None:
    """With one candidate a user and with up to four, where every gap differs and where thousands are equal."""
    rows = crowd(random.Random(1), 3000 if most == 1 else 1200, most)
    write_candidates(folder, rows)
    run = f"run-{share}-{most}-{steps}"
    config = configured(folder, run, score={"share_at_most": share}, constraints={"max_sends_24h": 2})
    champion = champion_for(config, steps=steps, **RANGE)
    found = score(config, champion)
    assert found["candidates"] == len(rows)
    check_met(config, found, share * len(rows))
    # Where thousands tie no price alone would do.
    assert 0 <= found["theta"] < 1
    assert found["theta"] > 0 or not steps
    if most > 1:
        return
    # The probabilities are those of that price, exactly.
    price = Price(found["lambda"], found["theta"])
    plan = replace(PLAN, constraints=config.constraints)
    again = judged(a_log(11, 40), rows, plan, champion, price=price)
    wanted = dict(zip((r["row_id"] for r in rows), again.probabilities(champion, price).tolist(), strict=True))
    scored = rows_of(config)
    free = [name for name, row in scored.items() if row["rule"] is None]
    assert len(free) > 0.9 * len(rows)
    np.testing.assert_array_equal([scored[n]["probabilities"] for n in free], [wanted[n] for n in free])


def test_a_number_of_sends_is_met_and_the_rerun_is_the_same(folder: Path) -> None:
    write_candidates(folder, crowd(random.Random(2), 900, 3))
    config = configured(folder, "rerun", score={"sends_at_most": 500}, constraints={"min_gap_hours": 2})
    found = score(config, champion_for(config, **RANGE))
    check_met(config, found, 500)
    rows = rows_of(config)
    again = score(config, champion_for(config, **RANGE))
    assert rows_of(config) == rows
    assert again["scores_fingerprint"] == found["scores_fingerprint"]
    assert {key: again[key] for key in ("lambda", "theta", "inputs")} == {
        key: found[key] for key in ("lambda", "theta", "inputs")
    }
    # Nothing that was laid aside stays.
    left = {path.name for path in (config.run_dir / "scores").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".dropped")]
    assert not list((config.run_dir / "scores").rglob("judged"))


def ends(folder: Path, most: int, **price: float) -> dict[str, float]:
    """Expected sends at either end of the range."""
    found = {}
    for end in ("lambda_low", "lambda_high"):
        config = configured(folder, f"ends-{most}-{end}", constraints={"max_sends_24h": 2})
        found[end] = score(config, champion_for(config, **{**price, "lambda": price[end]}))["expected_sends"]
    return found


@pytest.mark.parametrize("most", [1, 3])
def test_a_quota_outside_the_range_stops_or_is_told(folder: Path, most: int) -> None:
    narrow = {**DECISION, "lambda": 1.2, "lambda_low": 1.0, "lambda_high": 1.5}
    rows = crowd(random.Random(3), 400, most)
    write_candidates(folder, rows)
    least, greatest = (ends(folder, most, **narrow)[end] for end in ("lambda_high", "lambda_low"))
    assert least < greatest - 10

    def night(run: str, quota: float, **more: Any) -> Config:
        limits = {"sends_at_most": quota, **more}
        return configured(folder, f"{run}-{most}", score=limits, constraints={"max_sends_24h": 2})

    config = night("refused", least - 10)
    with pytest.raises(InputError, match=rf"at lambda 1\.5, the highest that was gated, {least:,.1f} are expected"):
        score(config, champion_for(config, **narrow))
    assert not (config.run_dir / "scores" / "_delta_log").exists()
    assert [path for path in (config.run_dir / "scores").rglob("*") if path.is_file()] == []

    config = night("nearest", least - 10, over_budget="nearest")
    found = score(config, champion_for(config, **narrow))
    assert (found["lambda"], found["theta"], found["budget"]["met"]) == (1.5, 0.0, False)
    assert found["expected_sends"] == pytest.approx(least)
    assert "even at lambda 1.5" in found["budget"]["reason"]

    # An upper limit that is not reached is kept.
    config = night("fewer", greatest + 10)
    found = score(config, champion_for(config, **narrow))
    assert (found["lambda"], found["theta"], found["budget"]["met"]) == (1.0, 0.0, True)
    assert found["expected_sends"] == pytest.approx(greatest)
    assert "fewer than the quota" in found["budget"]["reason"]

    config = night("inside", (least + greatest) / 2)
    found = score(config, champion_for(config, **narrow))
    assert 1.0 < found["lambda"] < 1.5
    assert abs(found["expected_sends"] - (least + greatest) / 2) <= max(0.005 * greatest, 1)


def test_without_a_gated_range_the_price_does_not_move(folder: Path) -> None:
    write_candidates(folder, crowd(random.Random(4), 200, 1))
    config = configured(folder, "fixed", score={"sends_at_most": 1000})
    found = score(config, champion_for(config, **{"lambda": 0.25}))
    assert (found["lambda"], found["budget"]["lambda_low"], found["budget"]["lambda_high"]) == (0.25, 0.25, 0.25)
    config = configured(folder, "fixed", score={"sends_at_most": 2})
    with pytest.raises(InputError, match=r"the quota is 2\.0 sends"):
        score(config, champion_for(config, **{"lambda": 0.25}))
    config = configured(folder, "fixed", score={"sends_at_most": 1000})
    with pytest.raises(InputError, match="outside the artifact's own range"):
        score(config, champion_for(config, **{"lambda": 0.25, "lambda_low": 0.3, "lambda_high": 1.0}))


def test_candidates_that_a_rule_decides_count_as_what_they_are(folder: Path) -> None:
    """Of a hundred only those with a choice can send; the share is of all."""
    free = [candidate(f"n{n}", f"free{n}", NOON, **{"context:relevance": n / 50}) for n in range(50)]
    held = [candidate(f"h{n}", f"held{n}", NOON, legal=["hold"]) for n in range(50)]
    write_candidates(folder, free + held)
    config = configured(folder, "ruled", score={"share_at_most": 0.2})
    found = score(config, champion_for(config, **RANGE))
    check_met(config, found, 20)
    rows = rows_of(config)
    assert all(rows[f"held{n}"]["probabilities"] == [1.0, 0.0, 0.0] for n in range(50))


def test_where_everybody_has_several_there_is_nothing_to_judge_beforehand(folder: Path) -> None:
    rows = [candidate(f"n{n // 2}", f"c{n}", NOON + n % 2 * HOUR, **{"context:relevance": n / 40}) for n in range(40)]
    write_candidates(folder, rows)
    config = configured(folder, "several", score={"share_at_most": 0.3})
    check_met(config, score(config, champion_for(config, **RANGE)), 12)
    assert len(rows_of(config)) == 40


@pytest.mark.parametrize(
    ("score_section", "words"),
    [
        ({"sends_at_most": 5, "share_at_most": 0.1}, "both given"),
        ({"share_at_most": 1.5}, "share_at_most"),
        ({"sends_at_most": -1}, "sends_at_most"),
        ({"fallback": "shout"}, "'shout' is not an action"),
        ({"over_budget": "maybe"}, "over_budget"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, score_section: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        validate({**tree(tmp_path, "run"), "score": score_section}, "night.toml")


def test_a_quota_wants_a_hold(tmp_path: Path) -> None:
    made = {**tree(tmp_path, "run"), "actions": ["badge", "push"], "score": {"share_at_most": 0.1}}
    with pytest.raises(InputError, match=r"score\.share_at_most: every action is a send"):
        validate(made, "night.toml")
