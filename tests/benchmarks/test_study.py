"""The study counts what it says it counts, judges as the whole evaluation does, and goes on from what was done."""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.study import estimators, halves, headline, members, promotion
from benchmarks.study.__main__ import SUMMARY, app
from benchmarks.study.page import fill, markdown
from benchmarks.study.parts import Part, Parts
from benchmarks.study.source import Source, log_of, varying
from benchmarks.study.truth import Candidate, harmed, improves, mixed, truths
from benchmarks.study.verdicts import Court, by_folds, held_out
from models.contract import SPLITS
from models.errors import InputError
from policies.evaluate import evaluate
from policies.gate import judge
from policies.ope.linear import fit_linear
from policies.ope.target import Target
from policies.rowset import EvaluateConfig
from policies.rules import GateConfig, GuardedMetric
from policies.simulator import always, simulate, user_totals

ROOT = Path(__file__).parents[2]
SOURCE = Source(ROOT / "configs" / "study.toml").but(simulate__days=11, simulate__users=300, simulate__truth_users=200)
METRICS = {
    "sends": GuardedMetric("down", 0.02, improve=True),
    "clicks": GuardedMetric("up", 0.03),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Relevant:
    """Sends what is relevant enough; a share of the rest."""

    def __init__(self, cut: float, learned: bool, name: str = "mine") -> None:
        self.cut, self.learned, self.name = cut, learned, name

    def action_probabilities(self, state: Any, legal: Any) -> Any:
        relevance = np.nan_to_num(state[:, list(SOURCE.config.contract.features).index("relevance")], nan=-1.0)
        send = np.where(relevance > self.cut, 0.9, 0.1) * legal[:, 1]
        return np.column_stack([1 - send, send])


def judged(learned: bool, cut: float, gate: GateConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The verdict by the whole evaluation, and by the study's lean way."""
    table, config = log_of(SOURCE, 3), EvaluateConfig(resamples=200)
    policy = Relevant(cut, learned)
    found = evaluate(table, [policy], config, gate, 5, progress=False, fit=fit_linear)
    whole = judge({**found, "seeds": None}, gate, 1)
    test = table.split == SPLITS.index("test")
    court = Court.of(table, test if learned else np.ones_like(test), config, gate, 5)
    alone = Target.of(policy, table)
    shares = [*gate.shares] if learned else []
    targets = [alone, *(alone if share == 1 else alone.mixture(table, share) for share in shares)]
    q = held_out(table, test, targets, fit_linear) if learned else by_folds(table, targets, fit_linear)
    found = court.described(targets, q, court.replicates(targets, q))
    return whole, court.verdict(found[0], dict(zip(shares, found[1:], strict=True)))


def test_the_lean_verdict_is_that_of_the_whole_evaluation() -> None:
    seen = set()
    for learned, cut, margin in itertools.product((False, True), (0.0, 0.2, 0.35, 0.4), (0.05, 0.9)):
        metrics = {"sends": METRICS["sends"], "clicks": GuardedMetric("up", margin)}
        gate = GateConfig(candidate="mine", metrics=metrics, min_ess=5, max_calibration_error=0.5)
        whole, lean = judged(learned, cut, gate)
        assert (lean["verdict"], lean["largest_share"]) == (whole["verdict"], whole["largest_share"])
        # Sums are added up in another order. The agreement of estimators is not asked where nothing was decided.
        own, same = ([check for check in each["checks"] if check["name"] != "estimators"] for each in (whole, lean))
        assert [(check["name"], check["passed"]) for check in own] == [
            (check["name"], check["passed"]) for check in same
        ]
        for mine, theirs in zip(own, same, strict=True):
            assert _numbers(mine["found"]) == pytest.approx(_numbers(theirs["found"]), rel=1e-9, abs=1e-12)
        seen.add(lean["verdict"])
        seen.add("some share" if lean["largest_share"] else "no share")
    assert seen == {"PROMOTE", "REFUSE", "INCONCLUSIVE", "some share", "no share"}


def test_a_verdict_that_another_estimator_contradicts_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = GateConfig(candidate="mine", metrics=METRICS, min_ess=5, max_calibration_error=0.5)
    assert judged(False, 0.2, gate)[1]["verdict"] == "REFUSE"
    far = {"pdis": {name: {"relative": 0.5, "se": 0.01} for name in METRICS}}
    monkeypatch.setattr("benchmarks.study.verdicts.disagreement", lambda *_: far)
    _, lean = judged(False, 0.2, gate)
    assert lean["verdict"] == "INCONCLUSIVE"


def _numbers(found: Any) -> list[float]:
    """Every number in what a check found, in order."""
    if isinstance(found, dict):
        return [number for each in found.values() for number in _numbers(each)]
    return [] if found is None else [float(found)]


def test_the_study_judges_by_dr_alone() -> None:
    table = log_of(SOURCE, 3)
    with pytest.raises(InputError, match=r"gate.estimator is 'wpdis'; the study judges by 'dr'"):
        Court.of(table, np.ones(len(table.user), bool), EvaluateConfig(), GateConfig(estimator="wpdis"), 0)


def test_confidence_is_divided_among_those_that_tried() -> None:
    table = log_of(SOURCE, 3)
    gate = GateConfig(candidate="mine", metrics=METRICS)
    court = Court.of(table, np.ones(len(table.user), bool), EvaluateConfig(resamples=200), gate, 0)
    assert court.levels.gate == pytest.approx(0.05)
    assert court.trying(10).levels.gate == pytest.approx(0.005)
    with pytest.raises(InputError, match="needs 400 or more"):
        court.trying(20)


# Truth


def told(sends: float, clicks: float, utility: float, error: float = 0.1) -> dict[str, dict[str, float | None]]:
    """A truth whose logging policy has 10 of everything; differences as given."""
    return {
        name: {"value": 10 + d, "standard_error": 1.0, "difference": d, "difference_standard_error": error}
        for name, d in {"sends": sends, "clicks": clicks, "utility": utility}.items()
    }


@pytest.mark.parametrize(
    ("sends", "clicks", "harm", "improvement"),
    [
        # Margins of 10: sends 0.2, clicks 0.3; twice that of sends is 0.4.
        (-0.41, 0.0, [], True),
        (-0.39, 0.0, [], False),
        (-0.41, -0.29, [], True),
        (-0.41, -0.31, ["clicks"], False),
        (0.19, 0.0, [], False),
        (0.21, -0.31, ["sends", "clicks"], False),
    ],
)
def test_harm_and_improvement(sends: float, clicks: float, harm: list[str], improvement: bool) -> None:
    truth = told(sends, clicks, 0.0)
    assert harmed(truth, METRICS) == harm
    assert improves(truth, METRICS) is improvement


def test_a_mixture_is_the_logging_policy_at_0_and_the_policy_itself_at_1() -> None:
    world = SOURCE.world
    logs = {share: simulate(world, 1, mixed(always, world, share), 100) for share in (0.0, 0.5, 1.0)}
    logged, own = simulate(world, 1, None, 100), simulate(world, 1, always, 100)
    sends = {share: float(user_totals(log)["sends"].sum()) for share, log in logs.items()}
    assert np.array_equal(logs[0.0].decisions["action"], logged.decisions["action"])
    assert np.array_equal(logs[1.0].decisions["action"], own.decisions["action"])
    assert sends[0.0] < sends[0.5] < sends[1.0]


def test_the_true_utility_is_the_weighted_sum_of_the_components(tmp_path: Path) -> None:
    place = tmp_path / "members.safetensors"
    assert members.train(SOURCE.but(train__steps=20), 1, 1, place, progress=False) == {}
    found = truths(SOURCE, place, [Candidate("ddqn/000"), Candidate("ddqn/000", 0.5)])
    assert set(found) == {"logging", "ddqn/000", "ddqn/000 x 0.5"}
    weights = SOURCE.config.learning.weights
    for each in found.values():
        for key in ("value", "difference"):
            parts = sum(weight * (each[name][key] or 0.0) for name, weight in weights.items())
            assert each["utility"][key] == pytest.approx(parts, abs=1e-12)
    assert found["logging"]["utility"]["difference"] == 0
    # A mixture lies between, as near as its own luck allows; and it is not the policy itself.
    alone, half = (found[name]["sends"]["difference"] for name in ("ddqn/000", "ddqn/000 x 0.5"))
    assert alone is not None
    assert half is not None
    assert 0 < half / alone < 1


def test_members_are_128_settings_and_what_is_saved_acts_alike(tmp_path: Path) -> None:
    every = members.settings(128)
    assert len({tuple(vars(each).items())[1:] for each in every}) == 128
    assert [each.number for each in members.settings(4)] == [0, 32, 64, 96]
    table = log_of(varying(SOURCE, 3), 3)
    acting = members.two(table, replace(SOURCE.config.learning, steps=20), 1)
    alive = {name: each for name, each in acting.items() if each is not None}
    assert set(alive) == set(members.KINDS)
    members.save(alive, tmp_path / "two.safetensors")
    loaded = members.load(tmp_path / "two.safetensors")
    for name, each in alive.items():
        own, again = (policy.action_probabilities(table.state, table.legal) for policy in (each, loaded[name]))
        assert np.array_equal(own, again)
    sends = [each.action_probabilities(table.state, table.legal)[:, 1].sum() for each in alive.values()]
    assert sends[0] != sends[1]


# What is counted


def test_halves() -> None:
    truth = {
        "ddqn/000": told(-0.5, 0.0, 0.5),
        "ddqn/001": told(0.5, 0.0, 0.1),
        "ddqn/002": told(-9.1, 0.0, -0.5),
        "ddqn_cql/000": told(0.0, 0.0, 0.0),
    }
    given = {
        "ddqn/000": ("PROMOTE", 1.0),
        "ddqn/001": ("PROMOTE", 0.2),
        "ddqn/002": ("REFUSE", None),
        "ddqn_cql/000": ("INCONCLUSIVE", None),
    }
    verdicts = {
        name: {key: {"verdict": verdict, "largest_share": share} for key in ("alone", "among")}
        for name, (verdict, share) in given.items()
    }
    found = halves.compared(truth, METRICS, verdicts)
    mine = found["ddqn"]
    counts = {key: mine[key] for key in ("alive", "beat", "surely", "surely_not", "harmless", "silent")}
    # 0.1 is one standard error; that member sends 5% more, beyond the margin of 2%.
    assert counts == {"alive": 3, "beat": 2, "surely": 1, "surely_not": 1, "harmless": 1, "silent": 1}
    # Gains 5%, 1%, -5%: mean 1/3%, deviations 14/3, 2/3, -16/3, squares sum to 456/9, over 2.
    assert mine["gain"] == pytest.approx(0.01 / 3)
    assert mine["gain_spread"] == pytest.approx(0.01 * (456 / 18) ** 0.5)
    assert mine["gate"]["alone"] == {"PROMOTE": 2, "INCONCLUSIVE": 0, "REFUSE": 1, "promoted_harmful": 1,
                                     "some_share": 2, "mean_share": 0.6}  # fmt: skip
    assert found["ddqn_cql"]["beat"] == 0
    assert found["ddqn_cql"]["gain_spread"] is None


def test_the_errors_of_estimators() -> None:
    truth = [told(0.0, 0.0, each) for each in (-1.0, 0.0, 1.0, 2.0)]
    said: Sequence[float] = (0.0, -1.0, 3.0, float("nan"))
    found = estimators.summary([({"dr": {"utility": value}}, each) for value, each in zip(said, truth, strict=True)])[
        "dr"
    ]
    # Errors 1, -1, 2 of 10: mean 2/3, deviations 1/3, -5/3, 4/3, squares sum to 42/9, over 2.
    assert found["bias"]["utility"] == pytest.approx(0.2 / 3)
    assert found["standard_deviation"]["utility"] == pytest.approx(0.1 * (42 / 18) ** 0.5)
    # Ranks 2, 1, 3 against 1, 2, 3: rho = 1 - 6 (1 + 1) / (3 * 8).
    assert found["rank_correlation"]["utility"] == pytest.approx(0.5)
    assert found["known"]["utility"] == 3


def test_errors_over_logs_by_share() -> None:
    asked = [Candidate("ddqn/000", 0.1), Candidate("ddqn/001", 0.1), Candidate("ddqn/000")]
    truth = {each.name: told(0.0, 0.0, 1.0) for each in asked}
    # Errors (of 10) of the two candidates at 0.1: 1 and 3 in the first log, 3 and 5 in the second.
    logs = [
        {asked[0].name: 2.0, asked[1].name: 4.0, asked[2].name: 1.0},
        {asked[0].name: 4.0, asked[1].name: 6.0, asked[2].name: float("nan")},
    ]
    found = estimators.by_share(
        asked, truth, [{name: {"estimates": {"dr": {"utility": value}}} for name, value in log.items()} for log in logs]
    )
    # Log means 2 and 4; each candidate's two errors lie 2 apart, so sd = sqrt(2).
    expected = {"bias": 0.3, "bias_error": 0.1 * 2**0.5 / 2**0.5, "standard_deviation": 0.1 * 2**0.5, "known": 1.0}
    assert found["0.1"]["dr"]["utility"] == pytest.approx(expected)
    assert found["1"]["dr"]["utility"] == {"bias": None, "bias_error": None, "standard_deviation": None, "known": 0.5}


def test_an_interval_over_seeds() -> None:
    # 1, 2, 3, 4: s = sqrt(5/3), t(0.975, 3) = 3.182446.
    half = 3.182446 * (5 / 3) ** 0.5 / 2
    found = headline.interval([1.0, 2.0, 3.0, 4.0, float("nan")])
    assert found == pytest.approx({"mean": 2.5, "low": 2.5 - half, "high": 2.5 + half, "seeds": 4}, abs=1e-5)
    assert headline.interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "seeds": 1}


def test_what_the_gate_promoted() -> None:
    truth = {"a": told(-0.5, 0.0, 0.0), "b": told(0.5, 0.0, 0.0), "c": told(0.0, 0.0, 0.0, error=0.12)}

    def log(a: str, b: str) -> dict[str, dict[str, str]]:
        return {"a": {"verdict": a}, "b": {"verdict": b}, "c": {"verdict": "PROMOTE"}}

    verdicts = {
        300: [log("INCONCLUSIVE", "PROMOTE"), log("INCONCLUSIVE", "INCONCLUSIVE")],
        900: [log("PROMOTE", "REFUSE"), log("INCONCLUSIVE", "REFUSE")],
    }
    found = promotion.summary(truth, verdicts, METRICS)
    counted = {key: each for key, each in found.items() if key != "growth"}
    # b harms, four verdicts and one of them a promotion; a improves, two at the largest log and one a promotion.
    # c lies 2% from the margin of sends, with an error of 1.2%: near. The others lie 3% or more, with 1%.
    assert counted == {
        "candidates": 3,
        "logs": 4,
        "harmful_candidates": 1,
        "harmful": 4,
        "harmful_promoted": 1,
        "improving_candidates": 1,
        "improving": 2,
        "improving_promoted": 1,
        "near_margin": 1,
    }
    assert found["growth"]["300"]["harmful"]["PROMOTE"] == 0.5
    assert found["growth"]["900"]["harmful"] == {"PROMOTE": 0.0, "INCONCLUSIVE": 0.0, "REFUSE": 1.0}
    assert promotion.by_candidate(truth, verdicts)["a"] == {"300": 0.0, "900": 0.5}


def test_candidates_reach_from_the_best_member_to_the_worst() -> None:
    truth = {f"ddqn/{number:03d}": told(0.0, 0.0, number / 10) for number in range(11)}
    found = promotion.candidates(truth, 3)
    assert [each.member for each in found][:: len(promotion.SHARES)] == ["ddqn/010", "ddqn/005", "ddqn/000"]
    assert [each.share for each in found[:4]] == [*promotion.SHARES]


def test_a_small_log_learns_without_the_features_that_never_vary() -> None:
    # Of 36 training users after a week of sends nobody was never sent anything: `send_never` is 0 throughout.
    source = SOURCE.but(simulate__truth_users=50, train__steps=5)
    found = headline.cell(source, 60, 0.05, 2)
    assert set(found) == {"ddqn", "ddqn_cql"}
    assert set(found["ddqn"]) == set(headline.METRICS)


# The command


def made(number: int) -> Part:
    """Its work is of the standard library: a process that was spawned has little to import."""
    return Part(f"a/{number}", dict, ({"number": number},))


def there(number: int) -> Part:
    """A part that fails where it is not there already."""
    return Part(f"a/{number}", dict, (None,))


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_are_made_once_and_given_in_order(tmp_path: Path, workers: int) -> None:
    console = Console(quiet=True)
    parts = Parts.of(tmp_path, {"size": 1}, workers, console)
    assert parts("some", [made(2), made(1)]) == [{"number": 2}, {"number": 1}]
    parts = Parts.of(tmp_path, {"size": 1}, workers, console)
    assert [each["number"] for each in parts("some", [made(0), there(1), there(2)])] == [0, 1, 2]
    with pytest.raises(TypeError):
        parts("some", [there(3)])
    assert not (Parts.of(tmp_path, {"size": 2}, workers, console).folder / "a").exists()
    assert (parts.folder / "a" / "1.json").exists()


WORDS = (
    "--workers 1 --members 1 --users 300 --truth-users 100 --steps 10 --seeds 1 --sizes 100 --epsilons 0.3 "
    "--headline-truth 50 --headline-steps 5 --log-sizes 150 --logs 2 --judged 1"
)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    short = (ROOT / "configs" / "study.toml").read_text().replace("days = 21", "days = 11")
    (tmp_path / "study.toml").write_text(short)
    shutil.copy(ROOT / "docs" / "study.md", tmp_path)
    return [
        *WORDS.split(),
        "--config",
        str(tmp_path / "study.toml"),
        "--out",
        str(tmp_path / "out"),
        "--docs",
        str(tmp_path),
    ]


def test_the_whole_study_small_and_gone_on_with(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, small)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary) == [*SUMMARY]
    assert summary["policies"] == 1
    assert summary["threads"] == 1
    assert summary["users"] == 300
    assert {"ips", "wpdis", "dr", "fqe"} <= set(summary["estimators"])
    assert all({"bias", "standard_deviation", "rank_correlation"} <= set(e) for e in summary["estimators"].values())
    cell = summary["headline"]["100"]["0.3"]
    assert {cell[kind]["sends"]["seeds"] for kind in members.KINDS} == {1}
    assert summary["gate"]["candidates"] == len(promotion.SHARES)
    assert summary["gate"]["logs"] == 2
    page = (tmp_path / "study.md").read_text()
    assert "| members of each half; diverged | 1; 0 |" in page
    assert all((tmp_path / f"study_{name}.svg").read_text().rstrip().endswith("</svg>")
               for name in ("truth", "estimators", "headline", "gate"))  # fmt: skip

    # A run that was killed before two of its parts: those are made again, the same, and nothing else is.
    (place,) = (tmp_path / "out" / "parts").iterdir()
    removed = [place / "verdicts" / "150-1.json", place / "headline" / "100-0.3-0.json"]
    for each in removed:
        each.unlink()
    made: list[str] = []
    monkeypatch.setattr(Parts, "_made", _counting(Parts._made, made))
    assert CliRunner().invoke(app, small).exit_code == 0
    assert sorted(made) == ["headline/100-0.3-0", "verdicts/150-1"]
    again = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {key: each for key, each in again.items() if key != "seconds"} == {
        key: each for key, each in summary.items() if key != "seconds"
    }


def _counting(make: Any, made: list[str]) -> Any:
    def counted(self: Parts, parts: Sequence[Part]) -> Any:
        made.extend(part.name for part in parts)
        return make(self, parts)

    return counted


def test_sizes_without_as_many_numbers_of_logs_are_refused(small: list[str]) -> None:
    done = CliRunner().invoke(app, [*small, "--logs", "3"])
    assert isinstance(done.exception, InputError)
    assert "--logs: 2 numbers for 1 of --log-sizes" in str(done.exception)


def test_a_page_without_room_for_a_table_is_refused(tmp_path: Path) -> None:
    assert markdown([("a", "b"), ("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    page = tmp_path / "study.md"
    page.write_text("nothing")
    world = {"users": 1, "days": 1, "epsilon": 0.1, "truth_users": 1}
    sizes = {"members": 1, "headline_truth": 1, "headline_steps": 1, "seeds": 1}
    gate = dict.fromkeys(("candidates", "logs", "harmful", "harmful_promoted", "harmful_candidates"), 0)
    gate |= dict.fromkeys(("improving", "improving_promoted", "improving_candidates"), 0)
    details: dict[str, Any] = {
        "settings": {**sizes, "config": {"train": {"steps": 1}, "simulate": world}},
        "gate": {**gate, "growth": {}},
        "policies": 1,
        "threads": 1,
        "seconds": 1.0,
    }
    details |= {name: {} for name in ("seconds_by_part", "stopped", "halves", "estimators", "by_share", "headline")}
    with pytest.raises(InputError, match=r"has no `<!-- settings -->`"):
        fill(page, details)
