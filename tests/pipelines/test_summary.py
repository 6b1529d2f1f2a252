"""What stands beside the table of an evaluation."""

from typing import Any

import pytest

from pipelines.summary import notes


def evaluation(**sends: float | None) -> dict[str, Any]:
    """Of `never`, by the estimators given."""
    estimates = {name: {"sends": {"estimate": value}, "clicks": {"estimate": 0.1}} for name, value in sends.items()}
    policies = {"never": {"estimates": estimates}, "always": {"estimates": {"fqe": {"sends": {"estimate": 3.2}}}}}
    return {"policies": policies, "unit": "per user-week", "clusters": "users", "warnings": ["as found"]}


@pytest.mark.parametrize(
    ("sends", "words"),
    [
        ({"wpdis": 0.0, "fqe": 0.043, "dr": -0.0021}, "error (fqe 0.0430, dr -0.0021 per user-week)"),
        ({"wpdis": 0.0, "fqe": 0.0004}, None),
        ({"wpdis": 0.0, "fqe": None}, None),
        # Some rows leave it no hold: then it does send.
        ({"wpdis": 0.2, "fqe": 0.21}, None),
        # One user with half of the weight: nothing is known without a model.
        ({"wpdis": None, "fqe": 0.043}, None),
        ({}, None),
    ],
)
def test_sends_of_never_are_told_to_be_error(sends: dict[str, float | None], words: str | None) -> None:
    *told, last = notes(evaluation(**sends))
    assert last == "as found"
    assert [words in each for each in told if words] == [True] * bool(words)
    assert len(told) == bool(words)


def test_a_log_without_sends_or_never_has_no_such_note() -> None:
    assert notes({"policies": {}, "unit": "per decision"}) == notes({}) == []
