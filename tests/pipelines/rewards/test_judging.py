"""`tactful rewards judge` over a real table of transitions and a local endpoint, from the command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from models import table
from models.contract import SPLITS
from models.errors import InputError, TransientError
from models.rewards import answers, store
from models.rewards.active import known
from models.rewards.answers import Pair
from models.rewards.describe import in_words
from models.rewards.judge.judging import draw_pairs
from models.rewards.judge.prompt import harmless
from models.rewards.learned import weights_of
from models.rewards.weeks import Weeks, weeks_of
from models.table import Transitions
from pipelines import simulate as lake
from pipelines.cli import app
from pipelines.config import Config, load
from pipelines.etl.flow import run_etl
from pipelines.rewards.judging import Request, run_judge
from policies.simulator import simulate
from tests.models.rewards.openai_server import PROSE, Messages, Server, answer, chance, shown
from tests.pipelines.inprocess import in_process

ROOT = Path(__file__).parents[3]
KEY = "sk-hunter2-hunter2"
WEIGHTS = {"sends": -0.3, "clicks": 1.0, "visits": 0.1, "weekly_active_days": 0.5, "disables": -2.0}
USER_ID = re.compile(r"\bu\d{7}\b")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated log of 150 users over 24 days, and its transitions as the ETL writes them."""
    folder = tmp_path_factory.mktemp("judge")
    config = configured(folder)
    assert config.simulate is not None
    tables = lake.tables(simulate(config.simulate, config.seed))
    lake.write(tables, {name: getattr(config.data, name).path for name in tables})
    with in_process() as session:
        run_etl(session, config)
    return folder


def overrides(folder: Path, url: str = "", **judge: Any) -> dict[str, str]:
    places = {
        f"data.{name}.path": str(folder / "lake" / name) for name in ("decisions", "events", "users", "candidates")
    }
    found = {"run_dir": str(folder / "run"), "simulate.users": "150", "simulate.days": "24", **places}
    if url:
        told = {"url": url, "model": "tiny", "constitution": str(ROOT / "configs" / "constitution.md"), **judge}
        found |= {f"learned.judge.{key}": json.dumps(value) for key, value in told.items()}
    return found


def configured(folder: Path, url: str = "", **judge: Any) -> Config:
    return load(ROOT / "configs" / "demo.toml", overrides(folder, url, **judge))


@pytest.fixture(scope="module")
def log(run_dir: Path) -> tuple[Transitions, Weeks]:
    config = configured(run_dir)
    found = table.read(config.transitions_path, config.contract)
    return found, weeks_of(found, 7, found.split != SPLITS.index("test"))


class Opinionated:
    """A model that knows the weeks by their words, and answers by the weights with some noise."""

    def __init__(self, log: tuple[Transitions, Weeks], wrong: float = 0.0) -> None:
        self.weeks = log[1]
        utility = self.weeks.totals @ np.array([WEIGHTS[name] for name in log[0].contract.rewards])
        self.known = {harmless(in_words(*log, place)): float(utility[place]) for place in range(len(utility))}
        self.wrong = wrong

    def __call__(self, messages: Messages) -> str:
        a, b = shown(messages)
        better = self.known[a] - self.known[b] > np.log(1 / chance("noise", a, b) - 1)
        return answer("AB"[int(better == (chance("wrong", a, b) < self.wrong))], 2)

    def people(self, count: int, seed: int = 99) -> list[Pair]:
        """What Ann says of other pairs, without noise."""
        utility = list(self.known.values())
        ids = self.weeks.id
        drawn = draw_pairs(np.ones(len(ids)), count, seed)
        assert len(utility) == len(ids), "no two weeks have the same words"
        return [Pair(ids[i], ids[j], "left" if utility[i] > utility[j] else "right", "ann") for i, j in drawn]


@pytest.fixture
def server(log: tuple[Transitions, Weeks], tmp_path: Path) -> Iterator[Server]:
    with Server(Opinionated(log)) as running:
        yield running


@pytest.fixture
def human(log: tuple[Transitions, Weeks], tmp_path: Path) -> Path:
    path = tmp_path / "ann.jsonl"
    answers.write(path, Opinionated(log).people(60))
    return path


def settings(folder: Path, url: str = "", **judge: Any) -> list[str]:
    told = overrides(folder, url, **judge).items()
    return [word for key, value in told for word in ("--set", f"{key}={value}")]


def log_rewards(folder: Path) -> tuple[str, ...]:
    return tuple(configured(folder).contract.rewards)


def command(folder: Path, url: str, *words: str, **judge: Any) -> Result:
    told = ["rewards", "judge", str(ROOT / "configs" / "demo.toml"), *words, *settings(folder, url, **judge)]
    return CliRunner().invoke(app, told)


def facts_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answers.facts_path(path).read_text())
    return found


def test_a_judge_that_agrees_with_people_is_trusted_and_its_weights_are_kept(
    run_dir: Path, server: Server, human: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.key = KEY
    out = tmp_path / "answers.jsonl"
    words = ("trusted", "--pairs", "120", "--out", str(out), "--human", str(human), "--fit")
    done = command(run_dir, server.url, *words, key_env="MY_KEY")
    assert done.exit_code == 0, done.output
    assert "180 of 180 pairs answered in both orders" in done.stdout
    assert "Trusted: it prefers the week that people prefer in" in done.stdout
    assert "version 1 of trusted" in done.stdout
    found, facts = answers.read([out]), facts_of(out)
    assert found.raters == ("judge:tiny",)
    assert len(found.pairs) == 120
    assert facts["trusted"] is True
    assert facts["agreement"]["pairs"] == 60
    assert facts["agreement"]["rate"] == facts["agreement"]["agreed"] / facts["agreement"]["decided"] > 0.7
    assert (facts["calls"], facts["answered"], facts["models"]) == (360, 180, {"tiny": 360})
    assert facts["principles"]["2"] == 360
    stored = store.read(configured(run_dir).rewards_path, "trusted")
    assert (stored.kind, stored.version) == ("weights", 1)
    assert stored.facts["weights"]["clicks"] > 0 > stored.facts["weights"]["sends"]
    assert stored.facts["noise"]["wrong"] == facts["estimate"]["wrong"]
    low, high = stored.facts["intervals"]["weekly_active_days"]
    assert low < stored.facts["weights"]["weekly_active_days"] < high
    assert np.shape(stored.facts["covariance"]) == (len(stored.facts["rewards"]),) * 2
    for path in (*run_dir.rglob("*"), *tmp_path.rglob("*")):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in done.output
    assert known(stored, found_rewards := log_rewards(run_dir)).components == tuple(stored.facts["rewards"])
    assert set(weights_of(stored, configured(run_dir).contract)) <= set(found_rewards)
    told = CliRunner().invoke(
        app, ["rewards", "report", str(ROOT / "configs" / "demo.toml"), "trusted", *settings(run_dir)]
    )
    assert told.exit_code == 0, told.output
    assert "trusted version 1" in told.stdout
    assert re.search(r"clicks +│ +\+\d", told.stdout)
    assert "By judge:tiny, trusted: it prefers the week that people prefer" in " ".join(told.stdout.split())
    # Once more: everything is known, and the same comes of it.
    before, bytes_ = len(server.requests), out.read_bytes()
    again = command(run_dir, server.url, *words, key_env="MY_KEY")
    assert again.exit_code == 0
    assert len(server.requests) == before
    assert out.read_bytes() == bytes_
    assert facts_of(out)["from_transcript"] == 360


def test_no_user_no_id_and_no_date_is_in_what_is_sent(
    run_dir: Path, log: tuple[Transitions, Weeks], server: Server, tmp_path: Path
) -> None:
    run_judge(configured(run_dir, server.url), Request("sent", 40, tmp_path / "a.jsonl"))
    sent = json.dumps(server.requests)
    assert USER_ID.search(str(log[0].user_id[0]))
    assert USER_ID.search(sent) is None
    assert not any(name in sent for name in log[1].id)
    assert re.search(r"\b20\d\d-\d\d", sent) is None


def test_users_of_the_test_split_are_not_asked_about(
    run_dir: Path, log: tuple[Transitions, Weeks], server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    run_judge(configured(run_dir, server.url), Request("split", 40, out))
    rows, weeks = log
    asked = weeks.places([each.left for each in answers.read([out], untrusted=True).pairs])
    assert SPLITS.index("test") not in rows.split[weeks.first[asked]]
    assert (rows.split == SPLITS.index("test")).any()


def test_without_people_it_is_untrusted_and_its_answers_are_not_read(
    run_dir: Path, server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    done = command(run_dir, server.url, "alone", "--pairs", "60", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "UNTRUSTED: no pair that people answered was named (--human)" in done.stdout
    with pytest.raises(InputError, match="not trusted: no pair that people answered"):
        answers.read([out])
    assert len(answers.read([out], untrusted=True).pairs) == 60
    fit = ["rewards", "fit", str(ROOT / "configs" / "demo.toml"), "by_fit", "--answers", str(out), *settings(run_dir)]
    refused = CliRunner().invoke(app, fit)
    assert isinstance(refused.exception, InputError)
    assert "its judge is not trusted" in str(refused.exception)
    taken = CliRunner().invoke(app, [*fit, "--untrusted"])
    assert taken.exit_code == 0, taken.output
    assert store.read(configured(run_dir).rewards_path, "by_fit").facts["raters"][0]["name"] == "judge:tiny"
    config, request = configured(run_dir, server.url), Request("alone", 60, out, fit=True)
    with pytest.raises(InputError, match=r"--fit: judge:tiny is not trusted.*--human, or say --untrusted"):
        run_judge(config, request)
    assert store.versions(config.rewards_path, "alone") == []
    assert run_judge(config, Request("alone", 60, out, fit=True, untrusted=True))["version"] == 1


def test_one_that_contradicts_people_is_untrusted(
    run_dir: Path, log: tuple[Transitions, Weeks], human: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    with Server(Opinionated(log, wrong=0.9)) as server:
        facts = run_judge(configured(run_dir, server.url), Request("contrary", 60, out, [human]))
    assert facts["trusted"] is False
    assert "whose lower end is below learned.judge.trust_at_least 0.6" in facts["why"]
    assert facts["agreement"]["rate"] < 0.4
    with pytest.raises(InputError, match="its judge is not trusted: it prefers"):
        answers.read([out])


def test_a_judge_that_looks_at_the_order_alone_is_found_out(run_dir: Path, tmp_path: Path) -> None:
    with Server(lambda messages: answer("A")) as server:
        facts = run_judge(configured(run_dir, server.url), Request("first", 30, tmp_path / "a.jsonl"))
        assert (facts["conflicts"], facts["first_shown_in_both"]) == (30, 30)
        assert "every one is A, whatever was shown" in facts["estimate"]["why"]
        assert {each.answer for each in answers.read([tmp_path / "a.jsonl"], untrusted=True).pairs} == {"tie"}
        with pytest.raises(InputError, match="no pair has an answer in both orders"):
            run_judge(configured(run_dir, server.url, conflicts="drop"), Request("first", 30, tmp_path / "b.jsonl"))
    assert not (tmp_path / "b.jsonl").exists()


def test_a_budget_stops_with_a_word_and_a_larger_one_goes_on(run_dir: Path, server: Server, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    done = command(run_dir, server.url, "poor", "--pairs", "50", "--out", str(out), budget_calls=41, concurrency=1)
    assert isinstance(done.exception, InputError)
    assert re.search(
        r"budget_calls: 41 of 41 calls are used up; raise it to go on: what was answered is kept\. Of 50 pairs 20 were "
        r"answered in both orders, written to .*answers\.jsonl",
        str(done.exception),
    )
    assert "20 of 50 pairs answered in both orders" in done.stdout
    assert len(answers.read([out], untrusted=True).pairs) == 20
    done = command(run_dir, server.url, "poor", "--pairs", "50", "--out", str(out))
    assert done.exit_code == 0
    assert len(server.requests) == 100
    assert len(answers.read([out], untrusted=True).pairs) == 50


@pytest.mark.parametrize(
    ("judge", "said", "error"),
    [
        (
            {"url": "http://127.0.0.1:9/v1", "retries": 0},
            "no answer in 1 tries.*refused.*Of 12 pairs 0",
            TransientError,
        ),
        ({"model": "huge"}, "no model 'huge' there", InputError),
        ({"key_env": "MY_WRONG_KEY"}, "the key in MY_WRONG_KEY is refused", InputError),
        ({"key_env": "MY_ABSENT_KEY"}, "the environment has no MY_ABSENT_KEY", InputError),
        ({"budget_calls": 0}, r"budget_calls: 0 of 0 calls are used up.*Of 12 pairs 0 were answered", InputError),
        ({"constitution": "absent.md"}, r"absent\.md cannot be read", InputError),
    ],
    ids=["nobody there", "unknown model", "wrong key", "no key", "no budget", "no constitution"],
)
def test_what_cannot_be_asked(
    judge: dict[str, Any],
    said: str,
    error: type[Exception],
    run_dir: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_WRONG_KEY", "sk-wrong-wrong")
    if "key_env" in judge:
        server.key = KEY
    url = judge.pop("url", server.url)
    with pytest.raises(error, match=said):
        run_judge(configured(run_dir, url, **judge), Request(tmp_path.name, 12, tmp_path / "a.jsonl"))
    assert list(tmp_path.glob("a.jsonl*")) == []


def test_prose_gives_no_answers(run_dir: Path, tmp_path: Path) -> None:
    with Server(lambda messages: PROSE) as server, pytest.raises(InputError, match="no answer in the form asked for"):
        run_judge(configured(run_dir, server.url), Request("prose", 30, tmp_path / "a.jsonl"))
    assert list(tmp_path.glob("a.jsonl*")) == []


def test_what_was_not_meant(run_dir: Path, server: Server, human: Path, tmp_path: Path) -> None:
    config = configured(run_dir, server.url)
    before = human.read_bytes()
    with pytest.raises(InputError, match="holds answers of ann; name another file"):
        run_judge(config, Request("meant", 10, human))
    assert human.read_bytes() == before
    judged = tmp_path / "judged.jsonl"
    answers.write(judged, [Pair("a", "b", "left", "judge:x")])
    with pytest.raises(InputError, match=r"judged\.jsonl"):
        run_judge(config, Request("meant", 10, tmp_path / "a.jsonl", [judged]))
    answers.write(judged, [Pair("a", "b", "left", "ann")])
    with pytest.raises(InputError, match="'a' is none of the"):
        run_judge(config, Request("meant", 10, tmp_path / "a.jsonl", [judged]))
    with pytest.raises(InputError, match=r"the configuration has no \[learned\.judge\].*Nothing else needs it"):
        run_judge(configured(run_dir), Request("meant", 10, tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match=r"'\.\./x' is no name for a reward"):
        run_judge(config, Request("../x", 10, tmp_path / "a.jsonl"))
    assert server.requests == []


def test_a_wrong_key_of_the_configuration_is_named(run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"learned\.judge.*temprature: no such key.*did you mean 'temperature'"):
        configured(run_dir, "http://h/v1", temprature=1)


def test_nothing_else_needs_a_client() -> None:
    """No other command imports it: without an endpoint everything works."""
    code = (
        "import sys, pipelines.cli, pipelines.config, pipelines.rewards.fitting, pipelines.rewards.looping\n"
        "print([each for each in sys.modules if each.startswith('models.rewards.judge')])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "['models.rewards.judge', 'models.rewards.judge.settings']"


def test_settings_are_written_down_without_a_key(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    config = configured(run_dir, "http://h/v1", key_env="MY_KEY")
    assert config.learned.judge is not None
    assert KEY not in config.model_dump_json() + str(asdict(config.learned.judge))
