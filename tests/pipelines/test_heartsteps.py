"""HeartSteps V1, a real micro-randomised trial, by configuration alone; skipped where the file is absent.

Known of the file (Klasnja et al., CC BY 4.0): 7,540 decisions of 37 people, one without its time, 6,061 at which the
person was available, sent with probability 0.6. In plain averages over the available decisions 3,594 sends less 2,467
holds make +0.1175 log steps.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from models import table
from models.rewards.answers import Answers, Pair, write
from models.rewards.preferences import Fitted, fit, random_pairs
from models.rewards.weeks import Weeks, weeks_of
from pipelines import jobs
from pipelines.config import Config, load
from pipelines.rewards.ask import Request, ask
from pipelines.rewards.fitting import run_fit
from policies.baselines import Always, Never
from policies.evaluate import evaluate

ROOT = Path(__file__).parents[2]
FILE = ROOT.parent / "shared" / "data" / "heartsteps_v1_decisions.csv"
OUTCOME = "log_steps_post_30m"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"{FILE.name} is not part of the repository; see README")


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any], Any]:
    folder = tmp_path_factory.mktemp("heartsteps")
    paths = {f"data.{name}.path": f'"{FILE}"' for name in ("decisions", "candidates")}
    config = load(ROOT / "configs" / "heartsteps.toml", {"run_dir": f'"{folder}"', **paths})
    report = jobs.etl(config)
    return config, report, table.read(config.transitions_path, config.contract)


def test_every_row_is_kept_or_counted_by_its_reason(run: tuple[Config, dict[str, Any], Any]) -> None:
    _, report, _ = run
    decisions = report["rows"]["decisions"]
    assert (decisions["read"], decisions["kept"], decisions["immature"]) == (7540, 7539, 0)
    assert decisions["by_reason"] == {"missing_decided_at": 1}
    made = report["rows"]["transitions"]
    # The last row of each of the 37 people ends at the watermark.
    assert (made["usable"], made["unusable"], made["silent"], made["truncated"]) == (7539, 0, 0, 37)


def test_the_trial_is_read_as_it_was_run(run: tuple[Config, dict[str, Any], Any]) -> None:
    config, _, log = run
    raw = pd.read_csv(FILE).dropna(subset=["decision_time_utc"])
    found = evaluate(log, [Never(), Always()], config.evaluate, config.gate, seed=1, progress=False, fit=zero)
    logging = found["policies"]["logging"]
    assert logging["estimates"]["on_policy"][OUTCOME]["estimate"] == pytest.approx(raw[OUTCOME].mean(), abs=1e-9)
    assert (logging["diagnostics"]["mean_weight"], logging["diagnostics"]["largest_weight"]) == (1.0, 1 / 37)
    (choice,) = [each for each in found["contrasts"] if each["rows"] == "choice"]
    assert (choice["policy"], choice["against"]) == ("always", "never")
    effect = choice["estimates"]["wpdis"][OUTCOME]
    available = raw[raw["available"] == 1].groupby("action")[OUTCOME].mean()
    assert effect["estimate"] == pytest.approx(available[1] - available[0], abs=1e-9)
    assert effect["estimate"] == pytest.approx(0.1175, abs=1e-4)
    # About [-0.02, 0.25] by people.
    assert effect["low"] == pytest.approx(-0.02, abs=0.03)
    assert effect["high"] == pytest.approx(0.25, abs=0.03)
    assert found["calibration"]["inverse_sum"] == pytest.approx(1.0, abs=0.02)


def zero(log: table.Transitions, rows: Any, ahead: Any, extra: Any) -> Any:
    """No value function: doubly robust is then importance sampling, and nothing here reads it."""
    return np.zeros((len(rows), len(log.user), len(log.contract.actions), len(log.contract.rewards)))


# Preferences over days: answered by a stated rule with a logistic noise, and recovered

WORTH = 0.3
"""What one log step counts against the noise of an answer."""
PRICE = 2.0
"""Log steps that one suggestion must bring to be worth its interruption."""


def answered(weeks: Weeks, pairs: list[tuple[int, int]], rule: dict[str, float], rewards: tuple[str, ...]) -> Answers:
    """P(left) = sigma(u_left - u_right), u = sum over the day of `rule`, weights by component."""
    utility = weeks.totals @ np.array([rule.get(name, 0.0) for name in rewards])
    noise = np.random.default_rng(8).logistic(size=len(pairs))
    said = []
    for (left, right), each in zip(pairs, noise, strict=True):
        better = utility[left] - utility[right] + each > 0
        said.append(Pair(str(weeks.id[left]), str(weeks.id[right]), "left" if better else "right", "rule"))
    return Answers(tuple(said))


def asked_of(weeks: Weeks, n: int, seed: int) -> list[tuple[int, int]]:
    drawn = random_pairs(weeks, np.zeros((0, 2), dtype=np.int64), n, np.random.default_rng(seed))
    return [(int(left), int(right)) for left, right in drawn]


def covers(found: Fitted, name: str, truth: float) -> bool:
    low, high = found.intervals[found.components.index(name)]
    return bool(low < truth < high)


def test_days_are_those_in_which_a_person_was_asked(run: tuple[Config, dict[str, Any], Any]) -> None:
    """By plain pandas: 24 hours each from a person's first decision. A day without a decision is no stretch, and what
    comes after the last decision of a day, silence of any length, is counted to it."""
    config, _, log = run
    weeks = weeks_of(log, config.learned.days)
    raw = pd.read_csv(FILE, parse_dates=["decision_time_utc"]).dropna(subset=["decision_time_utc"])
    raw = raw.sort_values(["user_id", "decision_time_utc"])
    ends = pd.Timestamp(config.etl.watermark)
    first = raw.groupby("user_id")["decision_time_utc"].transform("min")
    raw["number"] = (raw["decision_time_utc"] - first) // pd.Timedelta(days=1)
    raw["until"] = raw.groupby("user_id")["decision_time_utc"].shift(-1).fillna(ends)
    days = raw.assign(first=first).groupby(["user_id", "number"]).agg(
        first=("first", "min"), begins=("decision_time_utc", "min"), until=("until", "max"), rows=("action", "size")
    )  # fmt: skip
    over = days["first"] + (days.index.get_level_values("number") + 1) * pd.Timedelta(days=1)
    whole = days[days["until"] >= over]
    assert len(weeks.id) == len(whole)
    assert (weeks.end - weeks.first).tolist() == whole["rows"].tolist()
    # Delta is summed from the day's first decision on.
    length = (whole["until"] - whole["begins"]) / pd.Timedelta(days=1)
    assert weeks.days == pytest.approx(length.to_numpy(), abs=1e-9)
    assert weeks.days.max() > 20, "nobody was away"


def test_the_price_of_a_suggestion_is_recovered_from_days_compared(
    run: tuple[Config, dict[str, Any], Any], tmp_path: Path
) -> None:
    """By the commands: the page asks 300 pairs, the rule answers them, and a suggestion is worth -2 log steps."""
    config, _, log = run
    page = tmp_path / "ask.html"
    ask(config, Request(300, "rule", page, repeats=0.0, seed=2), Path("configs/heartsteps.toml"))
    held = re.search(r'id="data">(.*?)</script>', page.read_text())
    assert held is not None
    data = json.loads(held[1])
    weeks = weeks_of(log, config.learned.days)
    names = [weeks.places([data["weeks"][week]["id"] for week in each["weeks"]]) for each in data["pairs"]]
    rule = {OUTCOME: WORTH, "sends": -WORTH * PRICE}
    said = answered(weeks, [(int(left), int(right)) for left, right in names], rule, log.contract.rewards)
    write(tmp_path / "answers.jsonl", said.pairs)

    stored = run_fit(config, "worth", [tmp_path / "answers.jsonl"])

    assert stored.facts["unit"] == OUTCOME
    price = stored.facts["ratios"]["sends"]
    assert price["low"] < -PRICE < price["high"] < 0
    assert price["estimate"] == pytest.approx(-PRICE, abs=0.7)
    low, high = stored.facts["intervals"][OUTCOME]
    assert low < WORTH < high


def test_one_participant_s_own_days_suffice(run: tuple[Config, dict[str, Any], Any]) -> None:
    """37 whole days of the first person make 666 pairs; 250 of them are answered."""
    _, _, log = run
    own = log.where(log.user == 0)
    weeks = weeks_of(own, 1.0)
    assert len(weeks.id) == 37
    rule = {OUTCOME: WORTH, "sends": -WORTH * PRICE}
    found = fit(weeks, own.contract.rewards, answered(weeks, asked_of(weeks, 250, 3), rule, own.contract.rewards))
    assert all(covers(found, name, weight) for name, weight in rule.items())
    assert found.weights[0] < 0 < found.weights[1]


def test_a_rule_about_steps_after_suggestions_needs_them_as_a_component(
    run: tuple[Config, dict[str, Any], Any],
) -> None:
    """Sums of sends and of steps cannot say which steps followed a send: the rule is lost in them, and found again,
    steps after no suggestion at 0, once the product is a component of its own."""
    _, _, log = run
    sends, steps = (log.reward[:, log.contract.rewards.index(name)] for name in ("sends", OUTCOME))
    rewards = (*log.contract.rewards, "after_send")
    wider = replace(
        log,
        contract=replace(log.contract, rewards=rewards),
        reward=np.column_stack([log.reward, sends * steps]),
    )
    weeks = weeks_of(wider, 1.0)
    rule = {"after_send": WORTH, "sends": -WORTH * PRICE}
    said = answered(weeks, asked_of(weeks, 400, 5), rule, rewards)

    whole = fit(weeks, rewards, said)
    lost = fit(weeks_of(log, 1.0), log.contract.rewards, said)

    assert all(covers(whole, name, rule.get(name, 0.0)) for name in rewards)
    # Twice the log likelihood's gain by one weight is chi-squared with one degree: 10.8 at one in a thousand.
    assert 2 * (whole.log_likelihood - lost.log_likelihood) > 100
    assert not covers(lost, "sends", rule["sends"])
