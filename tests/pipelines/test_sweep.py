"""A sweep on a small simulated log: who is in it, what it leaves, what is picked, how it is asked for wrongly."""

import copy
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from models import artifact, table
from models.errors import InputError
from models.members import Learner
from models.registry import PARENT
from models.sweep import Simplex, SweepConfig
from models.training import TrainConfig
from pipelines import jobs, sweep
from pipelines.cli import app
from pipelines.config import Config, validate
from pipelines.jobs import learning, steps
from pipelines.report import render
from tests.pipelines.test_road import sections, small

GRID = {"grid": {"sends": [-0.02, -0.2]}, "alpha": [0.0, 1.0], "min_ess": 20.0}
TRAIN = TrainConfig(
    weights={"clicks": 1.0, "visits": 0.5, "sends": -0.1},
    learners={"ddqn": 0.0, "cql": 2.0, "own": Learner(weights={"clicks": 3.0}, alpha=0.5, pessimism=1.0)},
    seeds=2,
)


# Who is in it


def test_a_grid_is_every_combination_in_the_order_of_the_file() -> None:
    found = SweepConfig(grid={"clicks": (1.0, 2.0), "sends": (-0.1, -0.2)}).population(TRAIN, "cql")
    assert list(found.learners) == ["m01", "m02", "m03", "m04"]
    # What is not swept weighs what [train.weights] says, and alpha stays the learner's own.
    assert [each.weights for each in found.named.values()] == [
        {"clicks": 1.0, "visits": 0.5, "sends": -0.1},
        {"clicks": 1.0, "visits": 0.5, "sends": -0.2},
        {"clicks": 2.0, "visits": 0.5, "sends": -0.1},
        {"clicks": 2.0, "visits": 0.5, "sends": -0.2},
    ]
    assert {each.alpha for each in found.named.values()} == {2.0}
    assert (found.seeds, found.steps) == (TRAIN.seeds, TRAIN.steps)


def test_every_weighting_is_learned_under_every_alpha() -> None:
    found = SweepConfig(grid={"sends": (-0.1, -0.2)}, alpha=(0.0, 4.0), seeds=3, learner="cql").population(
        TRAIN, "ddqn"
    )
    assert [(each.weights["sends"], each.alpha) for each in found.named.values() if each.weights] == [
        (-0.1, 0.0), (-0.1, 4.0), (-0.2, 0.0), (-0.2, 4.0)
    ]  # fmt: skip
    assert found.seeds == 3
    # Double DQN is the member of alpha 0 of the same sweep.
    found = SweepConfig(grid={"sends": (-0.1,)}, alpha=(0.0, 4.0)).population(TRAIN, "ddqn")
    assert [each.penalised for each in found.named.values()] == [0.0, 4.0]


def test_a_learner_with_weights_of_its_own_keeps_those_that_are_not_swept() -> None:
    found = SweepConfig(grid={"sends": (-1.0,)}, learner="own").population(TRAIN, "cql").named["m01"]
    assert (found.weights, found.alpha, found.pessimism) == ({"clicks": 3.0, "sends": -1.0}, 0.5, 1.0)


def test_a_simplex_by_hand() -> None:
    """Two units shared among three: 6 = (2 + 2 over 2) ways."""
    simplex = Simplex(("clicks", "visits", "sends"), 2, {"sends": -0.4, "visits": 3.0})
    found = [(each["clicks"], each["visits"], each["sends"]) for each in simplex.weights()]
    assert sorted(found) == sorted([(1, 0, 0), (0, 3, 0), (0, 0, -0.4), (0.5, 1.5, 0), (0.5, 0, -0.2), (0, 1.5, -0.2)])
    assert len(found) == simplex.size == SweepConfig(simplex=simplex).size


@pytest.mark.parametrize(("components", "divisions"), [(2, 1), (2, 7), (3, 4), (4, 3)])
def test_shares_of_a_simplex_sum_to_one_and_none_comes_twice(components: int, divisions: int) -> None:
    found = list(Simplex(tuple("abcd"[:components]), divisions).weights())
    assert len(found) == Simplex(tuple("abcd"[:components]), divisions).size
    assert len({tuple(each.values()) for each in found}) == len(found)
    for each in found:
        assert sum(each.values()) == pytest.approx(1)
        assert all(float(value * divisions).is_integer() or value * divisions == pytest.approx(round(value * divisions))
                   for value in each.values())  # fmt: skip


BASE: dict[str, Any] = {
    "name": "small",
    "run_dir": "run",
    "rewards": ["sends", "clicks", "column:steps"],
    "data": {"decisions": {"path": "decisions.csv"}, "events": {"path": "events"}},
    "features": {"state": ["badge"]},
    "train": {
        "weights": {"clicks": 1.0},
        "learners": {"ddqn": 0.0, "ddqn_cql": 1.0, "low": {"pessimism": 1.0}, "slow": {"kind": "iql"}},
    },
}
BASE["train"]["seeds"] = 2
SENDS = {"sends": [-0.1, -0.2]}
SIMPLEX = {"components": ["sends", "clicks"], "divisions": 2}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ["sweep: neither of grid and simplex is there", "give one"]),
        ({"grid": SENDS, "simplex": SIMPLEX}, ["sweep: both of grid and simplex is there", "give one"]),
        ({"grid": {}}, ["sweep.grid is empty", "sends = [-0.05, -0.1]"]),
        ({"grid": {"sends": []}}, ["sweep.grid.sends is []", "one value or more"]),
        ({"grid": {"sends": [-0.1, -0.1]}}, ["sweep.grid.sends is [-0.1, -0.1]", "each once"]),
        ({"grid": {"sends": [float("nan")]}}, ["sweep.grid.sends is [nan]", "finite"]),
        ({"grid": {"sends": -0.1}}, ["sweep.grid.sends", "found -0.1"]),
        ({"grid": {"send": [-0.1]}}, ["sweep.grid: 'send' is not a reward component", "did you mean 'sends'"]),
        ({"grid": {"clicks": [0.0]}}, ["a member weighs nothing", "leave that combination out"]),
        ({"grid": {"sends": [-0.01 * each for each in range(65)]}}, ["65 members", "sweep.most = 64", "raise it"]),
        ({"grid": SENDS, "most": 1}, ["2 members", "sweep.most = 1"]),
        ({"grid": SENDS, "alpha": [1.0, 2.0], "most": 3}, ["4 members, 2 weightings times 2 alpha"]),
        ({"simplex": {**SIMPLEX, "divisions": 10**9}}, ["1000000001 members"]),
        ({"simplex": {**SIMPLEX, "divisions": 0}}, ["sweep.simplex.divisions is 0", "1 or more"]),
        ({"simplex": {**SIMPLEX, "components": ["sends"]}}, ["sweep.simplex.components is ['sends']", "two or more"]),
        ({"simplex": {**SIMPLEX, "components": ["sends", "sends"]}}, ["sweep.simplex.components", "name each once"]),
        (
            {"simplex": {**SIMPLEX, "components": ["sends", "click"]}},
            ["sweep.simplex.components: 'click' is not a rew"],
        ),
        ({"simplex": {**SIMPLEX, "scale": {"visits": 1.0}}}, ["sweep.simplex.scale: 'visits' is not among its comp"]),
        ({"simplex": {**SIMPLEX, "scale": {"sends": 0.0}}}, ["sweep.simplex.scale.sends is 0.0", "other than 0"]),
        ({"simplex": {"components": ["sends", "clicks"]}}, ["sweep.simplex.divisions: missing", "add it"]),
        ({"grid": SENDS, "alpha": [-1.0]}, ["sweep.alpha is [-1.0]", "0 or more"]),
        ({"grid": SENDS, "alpha": [1.0, 1.0]}, ["sweep.alpha is [1.0, 1.0]", "each once"]),
        ({"grid": SENDS, "alpha": [float("inf")]}, ["sweep.alpha is [inf]", "finite"]),
        ({"grid": SENDS, "alpha": [1.0], "learner": "slow"}, ["sweep.alpha: 'slow' is iql, which has no penalty"]),
        ({"grid": SENDS, "learner": "iql"}, ["sweep.learner: 'iql' is not learned (known: ddqn, ddqn_cql, low, slow)"]),
        ({"grid": SENDS, "learner": "low", "seeds": 1}, ["sweep.seeds is 1", "'low' acts by an ensemble", "2 or more"]),
        ({"grid": SENDS, "min_ess": -1.0}, ["sweep.min_ess is -1.0", "0 or more"]),
        ({"grid": SENDS, "seeds": 0}, ["sweep.seeds is 0", "1 or more"]),
        ({"grid": SENDS, "objectives": {"sends": "less", "clicks": "up"}}, ["sweep.objectives.sends", "'less'"]),
        ({"grid": SENDS, "objectives": {"sends": "down"}}, ["sweep.objectives is", "two or more"]),
        ({"grid": SENDS, "objectives": {"sends": "down", "visits": "up"}}, ["sweep.objectives: 'visits' is not a rew"]),
        ({"grid": SENDS, "objective": {}}, ["sweep.objective: no such key", "did you mean 'objectives'"]),
        ({"grid": SENDS, "simplx": SIMPLEX}, ["sweep.simplx: no such key", "did you mean 'simplex'"]),
    ],
)
def test_every_mistake_is_named_with_its_key_and_remedy(asked: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        validate({**copy.deepcopy(BASE), "sweep": asked}, "small.toml")
    assert error.value.exit_code == 2
    for word in words:
        assert word in str(error.value)


def test_a_log_without_the_usual_objectives_is_asked_for_its_own() -> None:
    tree = copy.deepcopy(BASE)
    tree["rewards"] = ["sends", "column:steps"]
    tree["train"]["weights"] = {"steps": 1.0}
    del tree["data"]["events"]
    with pytest.raises(InputError, match=r"sweep\.objectives: missing.*the rewards have sends; give two or more"):
        validate({**tree, "sweep": {"grid": SENDS}}, "small.toml")
    given = {"sends": "down", "steps": "up"}
    found = validate({**tree, "sweep": {"grid": SENDS, "objectives": given}}, "small.toml")
    assert found.sweep is not None
    assert found.sweep.front(found.contract.rewards) == given


# What it leaves


@pytest.fixture(scope="module")
def swept(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    tree = small(tmp_path_factory.mktemp("sweep"), sweep=GRID)
    tree["etl"] = {**tree["etl"], "split": [0.5, 0.25, 0.25]}
    config = validate(tree, "small.toml")
    jobs.simulate(config)
    jobs.etl(config)
    return config, jobs.sweep(config)


def test_it_leaves_an_artifact_and_figures_of_every_member(swept: tuple[Config, dict[str, Any]]) -> None:
    config, found = swept
    assert json.loads((config.run_dir / "steps" / "sweep.json").read_text()) == found
    assert list(found["members"]) == ["m01", "m02", "m03", "m04"]
    assert sorted(folder.name for folder in (config.run_dir / "sweep").iterdir()) == list(found["members"])
    assert found["objectives"] == {"clicks": "up", "weekly_active_days": "up", "sends": "down"}
    for name, member in found["members"].items():
        loaded = artifact.load(config.run_dir / "sweep" / name)
        assert loaded.decision["rollout_share"] == config.policy.rollout_share
        assert {key: weight for key, weight in loaded.weights.items() if weight} == member["weights"]
        assert loaded.lineage["learner"] == name
        assert loaded.lineage["fingerprint"] == found["lineage"]["fingerprint"]
        for figures in member["estimates"].values():
            assert set(figures) == {*config.contract.rewards, "ctr", "weighted"}
            for each in figures.values():
                assert each["low"] <= each["estimate"] <= each["high"]
    assert any(member["front"] for member in found["members"].values())
    assert not (config.run_dir / "checkpoints" / "sweep.safetensors").exists()


def test_a_member_is_what_its_lines_in_the_configuration_train(swept: tuple[Config, dict[str, Any]]) -> None:
    """The lines that pick prints, put into the file, make `tactful train` learn the same policy."""
    config, found = swept
    tree = json.loads(config.model_dump_json(exclude_none=True))
    log = table.read(config.transitions_path, config.contract)
    for name in ("m02", "m03"):
        lines = tomllib.loads(found["members"][name]["toml"])
        assert lines["train"]["learners"] == {"ddqn_cql": found["members"][name]["alpha"]}
        changed = copy.deepcopy(tree)
        changed["train"]["weights"] |= lines["train"]["weights"]
        changed["train"]["learners"] |= lines["train"]["learners"]
        jobs.train(validate(changed, "small.toml"))
        alone = artifact.load(config.run_dir / "policies" / "ddqn_cql").predict(log.state)
        within = artifact.load(config.run_dir / "sweep" / name).predict(log.state)
        for mine, theirs in zip(within, alone, strict=True):
            assert np.abs(mine - theirs).max() < 1e-4 * max(np.abs(theirs).max(), 1)
    other = artifact.load(config.run_dir / "sweep" / "m02").predict(log.state)
    assert np.abs(within[0] - other[0]).max() > 1e-2


def test_mlflow_has_one_run_and_one_under_it_for_each_member(swept: tuple[Config, dict[str, Any]]) -> None:
    config, found = swept
    client = steps.registry_of(config).client
    parent = client.get_run(found["mlflow_run"])
    assert parent.info.run_name == "small sweep"
    assert parent.data.tags["fingerprint"] == found["lineage"]["fingerprint"]
    runs = client.search_runs([parent.info.experiment_id], f"tags.`{PARENT}` = '{found['mlflow_run']}'")
    children = {run.info.run_name: run for run in runs}
    assert set(children) == set(found["members"])
    for name, run in children.items():
        member = found["members"][name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["front"] == str(member["front"]).lower()
        params = {key: float(run.data.params[f"weights.{key}"]) for key in member["weights"]}
        assert params == member["weights"]
        assert (float(run.data.params["alpha"]), run.data.params["seed"]) == (member["alpha"], "5")
        clicks = member["estimates"]["dr"]["clicks"]
        logged = [run.data.metrics[key] for key in ("clicks", "clicks_low", "clicks_high")]
        assert logged == [clicks[key] for key in ("estimate", "low", "high")]
        assert {"learning/td_loss", "weighted", "front_probability", "ess"} <= run.data.metrics.keys()
        assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["policy"]


def written(config: Config, path: Path) -> str:
    tree = json.loads(config.model_dump_json(exclude_none=True))
    lines = [f"{key} = {json.dumps(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    path.write_text("\n".join([*lines, *sections(tree)]))
    return str(path)


def test_pick_prints_lines_for_the_configuration(swept: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    config, found = swept
    path = written(config, tmp_path / "small.toml")
    before = sorted(each for each in config.run_dir.rglob("*") if each.is_file())
    done = CliRunner().invoke(app, ["pick", path, "--sends-at-most", "1e6"])
    assert done.exit_code == 0, done.output
    figures = {name: each["estimates"]["dr"] for name, each in found["members"].items() if each["trusted"]}
    best = max(figures, key=lambda name: figures[name]["weighted"]["estimate"])
    assert done.stdout.startswith(f"# {best}, per user-week on validation users:\n#   sends ")
    assert tomllib.loads(done.stdout)["train"]["weights"] == found["members"][best]["weights"]
    assert "of what the logging policy sends" in done.stdout
    assert sorted(each for each in config.run_dir.rglob("*") if each.is_file()) == before

    least = min(figures, key=lambda name: figures[name]["sends"]["relative"]["high"])
    share = 1 + figures[least]["sends"]["relative"]["high"]
    asked = ["pick", path, "--sends-at-most", str(share + 1e-9), "--relative", "--maximise", "clicks"]
    done = CliRunner().invoke(app, asked)
    assert done.stdout.startswith(f"# {least},")
    done = CliRunner().invoke(app, ["pick", path, "--sends-at-most", "0.001"])
    assert isinstance(done.exception, InputError)
    assert "no member sends at most 0.001 per user-week" in str(done.exception)


def test_the_terminal_shows_every_member_and_the_logging_policy(swept: tuple[Config, dict[str, Any]]) -> None:
    _, found = swept
    shown = sweep.members_table(found)
    names = {str(cell).removesuffix(" †") for cell in shown.columns[0].cells}
    assert names == {"logging", *found["members"]}
    assert [column.header for column in shown.columns] == [
        "member", "w sends", "alpha", "clicks ↑", "weekly_active_days ↑", "sends ↓", "weighted", "front"
    ]  # fmt: skip


def test_the_report_shows_the_sweep_of_its_own_transitions(swept: tuple[Config, dict[str, Any]]) -> None:
    config, found = swept
    jobs.train(config)
    jobs.evaluate(config)
    jobs.promote(config)
    summary = jobs.report(config)
    assert summary["sweep"] == found
    page = (config.run_dir / "report.html").read_text()
    assert page.count('class="front"') <= 2
    for name, member in found["members"].items():
        assert f">{name}{'' if member['trusted'] else ' †'}</th>" in page
    path = config.run_dir / "steps" / "sweep.json"
    path.write_text(json.dumps({**found, "lineage": {**found["lineage"], "fingerprint": "another"}}))
    assert jobs.report(config)["sweep"] is None
    assert "What other weights would cost" not in (config.run_dir / "report.html").read_text()
    path.write_text(json.dumps(found))


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / "summaries" / f"{name}.json").read_text())
    return found


def test_a_report_without_a_sweep_says_nothing_of_one() -> None:
    assert 'id="sweep"' not in render(summary("week"))


def test_the_pictures_join_the_front_of_two_metrics_and_name_that_of_all() -> None:
    """On a stored sweep of sixteen: the line by a naive search, a row for each, a label for those with room."""
    found = summary("sweep")
    page = render({**summary("week"), "sweep": found})
    changes = {
        name: {metric: each["relative"]["estimate"] for metric, each in member["estimates"]["dr"].items()}
        for name, member in found["members"].items()
    }
    section = page[page.index('<section id="sweep">') : page.index('<section id="metrics">')]
    lines = re.findall(r'<polyline points="([^"]*)" class="front"/>', section)
    for line, metric in zip(lines, ("clicks", "weekly_active_days"), strict=True):
        front = [
            (mine["sends"], mine[metric])
            for mine in changes.values()
            if not any(
                other["sends"] <= mine["sends"] and other[metric] >= mine[metric] and other != mine
                for other in changes.values()
            )
        ]
        drawn = np.array([[float(place) for place in point.split(",")] for point in line.split()])
        wanted = np.array(sorted(front)) * [1, -1]
        # The picture is a linear map of the changes, y downwards.
        assert len(drawn) == len(wanted)
        for mine, theirs in zip((drawn - drawn[0]).T, (wanted - wanted[0]).T, strict=True):
            assert mine / np.abs(mine).max() == pytest.approx(theirs / np.abs(theirs).max(), abs=0.01)
    labels = set(re.findall(r'class="label accent">(m\d\d)</text>', section))
    assert {"m04", "m16"} <= labels <= {name for name, member in found["members"].items() if member["front"]}
    for name, member in found["members"].items():
        row = section[section.index(f'<th scope="row">{name}</th>') :]
        assert f"<span>{'yes' if member['front'] else 'no'}<small>" in row[: row.index("</tr>")]
    assert "the larger a dot, the more weekly-active days" in section
    # Changes of m04: sends 3.33 is 10.2% less than 3.71.
    assert "−10.2% (−12.1% to −8.2%)" in section


def test_what_the_log_hardly_follows_is_told_and_not_drawn() -> None:
    found = summary("sweep")
    for member in found["members"].values():
        member |= {"trusted": False, "front": False}
    page = render({**summary("week"), "sweep": {**found, "diverged": ["m17"]}})
    assert "<polyline points" not in page[page.index('<section id="sweep">') : page.index('<section id="metrics">')]
    assert "Not drawn: the log follows none of these policies far enough" in page
    assert "m04 †</th>" in page
    assert "Left out because learning diverged: m17." in page


def test_a_sweep_that_cannot_be_says_what_is_missing(
    swept: tuple[Config, dict[str, Any]], tmp_path: Path, spark: SparkSession
) -> None:
    with pytest.raises(InputError, match=r"small: the configuration has no \[sweep\]; add one"):
        jobs.sweep(validate(small(tmp_path), "small.toml"))
    with pytest.raises(InputError, match=r"sweep\.json: not there; run `tactful sweep`"):
        jobs.pick(validate(small(tmp_path, sweep=GRID), "small.toml"), 1.0)


def test_keys_of_the_lines_are_quoted_where_they_must_be() -> None:
    tree = copy.deepcopy(BASE)
    tree["train"]["learners"] |= {"it is mine": {"weights": {"clicks": 2.0}}, "plain one": 1.0}
    tree["sweep"] = {"grid": SENDS, "alpha": [0.5, 2.0], "learner": "it is mine"}
    config = validate(tree, "small.toml")
    lines = sweep.toml_of(config, "it is mine", {"clicks": 2.0, "steps taken": 1e-7}, 0.5)
    assert tomllib.loads(lines) == {
        "train": {"learners": {"it is mine": {"weights": {"clicks": 2.0, "steps taken": 1e-7}, "alpha": 0.5}}}
    }
    assert tomllib.loads(sweep.toml_of(config, "plain one", {"clicks": 2.0}, 2.0)) == {
        "train": {"weights": {"clicks": 2.0}, "learners": {"plain one": 2.0}}
    }


MIXED: dict[str, Any] = {
    "short_ddqn": 0.0,
    "short_cql": 2.0,
    "ddqn": {"kind": "ddqn", "learning_rate": 0.01},
    "cql": {"kind": "ddqn_cql", "alpha": 3.0, "penalty": "push_down"},
    "plain": {"kind": "ddqn_cql"},
    "iql": {"kind": "iql", "policy": "awr"},
    "own": {"kind": "ddqn", "weights": {"clicks": 3.0}},
}


def merged(tree: dict[str, Any], lines: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the lines put into it, as a person does."""
    return {**tree, **{key: merged(tree.get(key, {}), value) if isinstance(value, dict) else value
                       for key, value in lines.items()}}  # fmt: skip


def test_mlflow_is_told_the_alphas_in_force_beside_the_sweep() -> None:
    tree = copy.deepcopy(BASE)
    tree["train"]["learners"] = {"ddqn_cql": {"kind": "ddqn_cql"}, "plain": 0.5}
    tree |= {"sweep": {"grid": SENDS}}
    told = learning._params(validate(tree, "small.toml"), "sweep")
    assert told.keys() == {"seed", "train", "policy", "features", "sweep"}
    assert told["train"]["learners"]["ddqn_cql"]["alpha"] == 1.0
    assert told["train"]["learners"]["plain"] == 0.5


@pytest.mark.parametrize("alphas", [[], [0.0, 0.5]])
@pytest.mark.parametrize("name", list(MIXED))
def test_the_lines_of_a_member_learn_the_very_same_policy(name: str, alphas: list[float]) -> None:
    """Through the file and back: of every kind, each setting that the member is learned under but its name."""
    if name == "iql" and alphas:
        pytest.skip("has no penalty to sweep")
    tree = copy.deepcopy(BASE)
    tree["train"]["learners"] = copy.deepcopy(MIXED)
    tree |= {"sweep": {"grid": SENDS, "alpha": alphas, "learner": name}, "gate": {"candidate": name}}
    config = validate(tree, "small.toml")
    assert config.sweep is not None
    population = config.sweep.population(config.learning, name)
    assert len(population.learners) == 2 * max(len(alphas), 1)
    for member in population.named.values():
        weights = dict(member.weights or {})
        lines = tomllib.loads(sweep.toml_of(config, name, weights, member.penalised))
        again = validate(merged(tree, lines), "small.toml").learning
        found = again.named[name]
        assert found.penalised == member.penalised
        assert (again.weights if found.weights is None else found.weights) == weights
        same = {"kind": "", "alpha": member.penalised, "weights": weights}
        assert replace(found, **same) == replace(member, **same)
        # alpha 0 of the penalty is Double DQN; the kinds are else one.
        kinds = {found.kind, member.kind}
        assert len(kinds) == 1 or (kinds == {"ddqn", "ddqn_cql"} and member.penalised == 0)
