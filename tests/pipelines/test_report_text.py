"""Numbers as the report prints them."""

import pytest

from pipelines.report.text import Range, duration, fixed, moment, percent, places, plain, policy_name, short, tidy


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (fixed(-0.0001, 2), "0.00"),
        (fixed(-1234.5, 1), "−1,234.5"),
        (plain(0.000123456), "0.000123"),
        (plain(None), "–"),
        (plain(float("nan")), "–"),
        (plain(7.0), "7"),
        (short(0.5, sign=True), "+0.5"),
        (percent(0.0123), "1.2%"),
        (percent(0.5), "50%"),
        (duration(74.2), "1 min 14 s"),
        (moment("2026-03-29T06:14:09+00:00"), "29 March 2026, 06:14 UTC"),
        (moment("3"), "3"),
        (tidy("bound 0.0193214567891234, sha 12.34567abc"), "bound 0.01932, sha 12.34567abc"),
        (tidy({"a": 0.1, "b": [True, None]}), "a: 0.100, b: yes, –"),
        # half-width 0.012: two digits; 0.08: one; bounds told from zero do not read as zero
        (Range(3.4217, 3.41, 3.434).texts(), ("3.422", "3.410 to 3.434")),
        (Range(3.4217, 3.34, 3.5).texts(), ("3.42", "3.34 to 3.50")),
        (Range(0.39, 0.01, 0.77).texts(sign=True), ("+0.39", "+0.01 to +0.77")),
        (Range(-1, -1, -1).texts("%"), ("−1%", "exactly")),
        (Range(None).texts(), ("–", "")),
    ],
)
def test_numbers_are_read_as_a_person_writes_them(found: object, said: object) -> None:
    assert found == said


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("never", "Never send"),
        ("survival_uplift", "Visit uplift (survival)"),
        ("click_threshold alone", "Click-probability threshold alone"),
        ("ddqn_cql alone", "ddqn_cql alone"),
        ("mine", "mine"),
    ],
)
def test_a_policy_keeps_its_name_where_it_acts_alone(key: str, name: str) -> None:
    assert policy_name(key) == name


def test_decimals_follow_the_half_width() -> None:
    assert [places(-h, h) for h in (12, 7, 1.2, 0.36, 0.35, 0.012)] == [0, 0, 1, 1, 2, 3]
    assert places(1, 1) is None
