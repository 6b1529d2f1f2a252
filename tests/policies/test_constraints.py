"""Which rule takes away the sends, and what is left."""

import numpy as np
import pytest

from models.errors import InputError
from policies.constraints import Constraints, legal_actions

ACTIONS = ("hold", "badge", "push")


def facts(**changed: float) -> dict[str, np.ndarray]:
    values = {"notifications_on": 1.0, "local_hour": 12.0, "sends_24h": 0.0, "sends_7d": 0.0}
    values["hours_since_send"] = np.nan
    return {name: np.array([value]) for name, value in {**values, **changed}.items()}


def decide(limits: Constraints, logged: list[bool] | None = None, **changed: float) -> tuple[list[bool], str]:
    legal, rule = legal_actions(facts(**changed), np.array([logged or [True] * 3]), ACTIONS, limits)
    return legal[0].tolist(), rule[0]


ONLY_HOLD, ALL = [True, False, False], [True, True, True]


@pytest.mark.parametrize(
    ("limits", "changed", "rule"),
    [
        (Constraints(), {"notifications_on": 0.0}, "consent"),
        (Constraints(consent=False), {"notifications_on": 0.0}, ""),
        (Constraints(quiet_hours=(22, 8)), {"local_hour": 22.0}, "quiet_hours"),
        (Constraints(quiet_hours=(22, 8)), {"local_hour": 7.99}, "quiet_hours"),
        (Constraints(quiet_hours=(22, 8)), {"local_hour": 8.0}, ""),
        (Constraints(quiet_hours=(12, 14)), {"local_hour": 14.0}, ""),
        (Constraints(quiet_hours=(12, 14)), {"local_hour": 12.0}, "quiet_hours"),
        (Constraints(max_sends_24h=2), {"sends_24h": 2.0}, "max_sends_24h"),
        (Constraints(max_sends_24h=2), {"sends_24h": 1.0}, ""),
        (Constraints(max_sends_7d=5), {"sends_7d": 5.0}, "max_sends_7d"),
        (Constraints(min_gap_hours=4), {"hours_since_send": 3.99}, "min_gap"),
        (Constraints(min_gap_hours=4), {"hours_since_send": 4.0}, ""),
        (Constraints(min_gap_hours=4), {}, ""),
        (Constraints(min_gap_hours=4, max_sends_24h=1), {"hours_since_send": 1.0, "sends_24h": 3.0}, "max_sends_24h"),
        (Constraints(max_sends_24h=1), {"notifications_on": 0.0, "sends_24h": 3.0}, "consent"),
    ],
)
def test_first_binding_rule_takes_every_send(limits: Constraints, changed: dict[str, float], rule: str) -> None:
    assert decide(limits, **changed) == (ONLY_HOLD if rule else ALL, rule)


def test_logged_legal_actions_are_never_widened_but_for_hold() -> None:
    assert decide(Constraints(), [False, False, True]) == ([False, False, True], "")
    assert decide(Constraints(), [False, False, True], notifications_on=0.0) == (ONLY_HOLD, "consent")
    # Nothing was taken away where no send was there to take.
    assert decide(Constraints(), [True, False, False], notifications_on=0.0) == (ONLY_HOLD, "")


def test_without_hold_no_limit_binds_and_the_input_stays_as_it_was() -> None:
    logged = np.array([[True, True]])
    legal, rule = legal_actions(facts(notifications_on=0.0), logged, ("short", "long"), Constraints())
    assert legal.tolist() == [[True, True]]
    assert rule.tolist() == [""]
    logged3 = np.array([ALL])
    legal_actions(facts(notifications_on=0.0), logged3, ACTIONS, Constraints())
    assert logged3.tolist() == [ALL]


@pytest.mark.parametrize(
    ("key", "value"),
    [("quiet_hours", (24, 8)), ("max_sends_24h", -1), ("max_sends_7d", -1), ("min_gap_hours", -0.5)],
)
def test_a_limit_out_of_range_names_its_key(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"constraints.{key}"):
        Constraints(**{key: value})
