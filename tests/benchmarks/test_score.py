"""What `make bench-score` times is right: on few users, its contenders say the same and the decision keeps its word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession

from benchmarks import score
from models import artifact
from models.errors import InputError
from pipelines.config import Config
from pipelines.etl import store
from pipelines.etl.flow import explained
from pipelines.scoring.inference import Network, States, decided, predicted, states_of, write_predicted
from pipelines.scoring.tasks import Night, scores_schema
from policies.constraints import legal_actions
from policies.q_policy import deployed_probabilities

USERS = 3_000


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    score.write_users(USERS, folder / "users" / "all")
    score.write_models(config_in(folder), folder)
    return folder


def config_in(out: Path) -> Config:
    return score.config_of(out, 2, 1_000, "1g")


@pytest.fixture
def users(spark: SparkSession, out: Path) -> DataFrame:
    return spark.read.parquet(str(out / "users" / "all"))


def night(out: Path) -> Night:
    return score.night_of(config_in(out), out / "policy", out / "scores")


def raw(out: Path) -> pd.DataFrame:
    return pq.read_table(out / "users" / "all").to_pandas().set_index("candidate_id")


def test_q_is_mlflows_and_the_artifacts(spark: SparkSession, users: DataFrame, out: Path) -> None:
    found = score.contenders(spark, config_in(out), out, "all")
    assert list(found) == ["mlflow", "q", "q_files", "full"]
    told = [contender() for contender in found.values()][-1]
    assert score.q_difference(out) <= score.TOLERANCE
    scores = score.said(out, "full", ["candidate_id", "action"])
    assert told["met"]
    assert told["drawn"] == scores["action"].to_pylist().count("send")
    rows = score.said(out, "q_files", ["candidate_id", "q"]).to_pandas().set_index("candidate_id")
    state = np.stack(raw(out).loc[rows.index]["state"].to_list())
    q, behaviour, values = artifact.load(out / "policy").predict(state)
    assert rows.columns.tolist() == ["q"]
    assert len(rows) == USERS
    # A second time in place of the first; who lost a row is found out.
    assert write_predicted(States.of(spark, users), Network.of(out / "policy"), ["candidate_id"], out / "said/q") == 0
    few = States.of(spark, users.where("candidate_id < 'c000000007'"))
    assert write_predicted(few, Network.of(out / "policy"), ["candidate_id"], out / "said/q_files") == 1
    assert score.said(out, "q_files", ["candidate_id"]).num_rows == 7
    with pytest.raises(ValueError, match="'q_files': 7, 'full': 3000"):
        score.q_difference(out)
    np.testing.assert_allclose(np.stack(rows["q"].to_list()), q, atol=1e-5)
    network = Network.of(out / "policy", ("behaviour", "values"))
    whole = predicted(States.of(spark, users), network, ["candidate_id"])
    every = whole.toPandas().set_index("candidate_id").loc[rows.index]
    np.testing.assert_allclose(np.stack(every["behaviour"].to_list()), behaviour, atol=1e-5)
    np.testing.assert_allclose(np.stack(every["values"].to_list()).reshape(values.shape), values, atol=1e-4)


def test_the_decision_meets_the_quota_within_the_limits(spark: SparkSession, users: DataFrame, out: Path) -> None:
    quota_of = 0.2 * USERS
    found = decided(States.of(spark, users), night(out), quota_of)
    table, quota = DeltaTable(out / "scores").to_pyarrow_table(), found.quota
    assert sorted(table.schema.names) == sorted(scores_schema(config_in(out).contract).names)
    rows = table.to_pandas().set_index("candidate_id")
    assert found.version == 0
    assert quota.met
    assert found.counts["by_action"] == rows["action"].value_counts().to_dict()
    assert found.counts["by_rule"] == rows["rule"].fillna("policy").value_counts().to_dict()
    assert found.counts["expected_sends"] == pytest.approx(quota.expected, abs=1e-4)
    # Nothing lies about that the commit does not name.
    left = {path for path in (out / "scores").rglob("*") if path.is_file() and "_delta_log" not in path.parts}
    assert left == {out / "scores" / path for path, _ in store.files(DeltaTable(out / "scores"))}
    assert sorted(rows.index) == sorted(raw(out).index)

    given = raw(out).loc[rows.index]
    config, loaded = config_in(out), artifact.load(out / "policy")
    facts = {name: given[name].to_numpy() for name in score.FACTS}
    legal, rule = legal_actions(facts, np.ones((USERS, 2), bool), config.contract.actions, config.constraints)
    np.testing.assert_array_equal(np.stack(rows["legal"].to_list()), legal)
    assert (rows["rule"].fillna("") == rule).all()
    assert set(rule) == {"", "consent", "quiet_hours", "max_sends_24h", "max_sends_7d", "min_gap"}

    q, behaviour, values = loaded.predict(np.stack(given["state"].to_list()))
    decision = {**loaded.decision, "lambda": quota.price.lambda_}
    probability = deployed_probabilities(q, behaviour, legal, decision, (False, True), quota.price.theta)
    np.testing.assert_allclose(np.stack(rows["probabilities"].to_list()), probability, atol=1e-9)
    assert abs(probability[:, 1].sum() - quota_of) <= max(0.005 * quota_of, 1)
    taken = (rows["action"] == "send").to_numpy().astype(int)
    np.testing.assert_allclose(rows["propensity"], probability[np.arange(USERS), taken], atol=1e-9)
    np.testing.assert_allclose(rows["value_send_clicks"], values[:, 1, 1], atol=1e-4)
    # Draws follow their propensities: to within four standard deviations of their sum.
    spread = np.sqrt((probability[:, 1] * probability[:, 0]).sum())
    assert abs(taken.sum() - quota_of) < 4 * spread
    # From the files, as from Spark, and a second time.
    assert decided(States.of(spark, out / "users" / "all"), night(out), quota_of).version == 1
    again = DeltaTable(out / "scores").to_pyarrow_table().to_pandas().set_index("candidate_id").loc[rows.index]
    pd.testing.assert_frame_equal(again, rows)


def changed(users: DataFrame, state: str) -> DataFrame:
    return users.selectExpr("candidate_id", f"if(candidate_id = 'c000000007', {state}, state) as state")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("array(cast(1 as float))", "1 of 3000 rows have not 32 features, as the policy needs; the first has 1"),
        ("cast(null as array<float>)", "1 of 3000 rows have not 32 features, as the policy needs; the first has none"),
    ],
)
def test_states_of_another_shape_are_named(
    spark: SparkSession, users: DataFrame, out: Path, state: str, words: str
) -> None:
    states = States.of(spark, changed(users, state).coalesce(1))
    with pytest.raises(InputError, match=words), explained():
        predicted(states, Network.of(out / "policy")).toArrow()


def test_what_cannot_be_asked_is_named(spark: SparkSession, users: DataFrame, out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no output .advantage. .known: q, behaviour, values"):
        Network.of(out / "policy", ("advantage",))
    with pytest.raises(InputError, match="the table lacks user_id, sends_7d"):
        decided(States.of(spark, users.drop("user_id", "sends_7d")), night(out), 10.0)
    with pytest.raises(InputError, match="the table lacks who"):
        predicted(States.of(spark, out / "users" / "all"), Network.of(out / "policy"), ["who"])
    with pytest.raises(InputError, match="the table has no row"):
        decided(States.of(spark, users.limit(0)), night(out), 10.0)
    job = replace(night(out), root=tmp_path / "scores")
    with pytest.raises(InputError, match=r"the quota is 0.0 sends, and even at lambda 100"):
        decided(States.of(spark, users), job, 0.0)
    assert not list((tmp_path / "scores").iterdir())
    (tmp_path / "users.parquet").write_text("no file of that kind")
    with pytest.raises(InputError, match=r"users.parquet is no readable Parquet file"):
        States.of(spark, tmp_path)


@pytest.mark.parametrize("offset", [0, 2])
def test_states_are_views_where_nothing_is_null(offset: int) -> None:
    flat = np.arange(12, dtype=np.float32)
    column: Any = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2).cast(pa.list_(pa.float32())).slice(offset)
    found = states_of(column, 2)
    np.testing.assert_array_equal(found, flat.reshape(-1, 2)[offset:])
    assert not found.flags.owndata
    holes = pa.array([[1.0, None], [None, 2.0]], pa.list_(pa.float32()))
    np.testing.assert_array_equal(states_of(holes, 2), [[1.0, np.nan], [np.nan, 2.0]])
