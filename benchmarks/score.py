"""Scoring against `mlflow.pyfunc.spark_udf` of the same model: `make bench-score`.

Users with 32 features in one array<float> column of Parquet files; a policy whose three networks (Q, the cloned logging
policy, fitted values) have two hidden layers of 256 units each. In one Spark session, in turn, `rounds` times each
after one to warm up on a fifth of the users, with the same threads, the same Arrow batches and the same sink: Parquet
files on one disk, zstd at level 1, which hold the candidate's id and what was said of it:

- mlflow: `spark_udf` with env_manager "local" of the Q network alone, in the form that is fastest, written by Spark;
- q: `pipelines.scoring.inference.predicted`, the same network, the model alone, from the same DataFrame, written by
  Spark;
- q_files: `write_predicted`, the same, whose tasks read and write files with Arrow instead of Spark: one commit of a
  Delta table;
- full: `decided`, reading and writing in the same way: all three networks, legal actions under constraints, a volume
  budget met over all users, exploration, hashed draws and propensities, one commit of the scores table, every column of
  it, as nightly scoring leaves it.

At last full at a fifth of the users, full and mlflow at all of them, each in a process of its own, while the memory of
its process tree (JVM and Python workers) is sampled.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from rich.console import Console
from rich.table import Table

from benchmarks.etl import run_child
from models import artifact
from models.members import Learner
from models.network import initial
from models.scaling import Scales
from models.train import Learned
from pipelines.config import Config, validate
from pipelines.etl.plans import as_of, make_plan
from pipelines.etl.staging import new_run
from pipelines.scoring.inference import FACTS, Network, States, decided, predicted, write_predicted
from pipelines.scoring.rounds import Rules
from pipelines.scoring.tasks import Night
from pipelines.session import spark_session

Report = dict[str, Any]

FEATURES, HIDDEN = 32, (256, 256)
REWARDS = ["sends", "clicks", "visits", "weekly_active_days", "disables"]
WEIGHTS = {"sends": -0.1, "clicks": 1.0, "visits": 0.5, "weekly_active_days": 0.3, "disables": -2.0}
QUOTA = 0.2
"""Sends per user that the budget asks for."""
FILE_ROWS = 250_000
TOLERANCE = 1e-5
"""Of Q against mlflow's."""
AIM = 2.5
BARS = {"q_to_mlflow": 1.5, "full_to_mlflow": 1.0}
A_HUNDRED_MILLION = 100_000_000
NAMES = ("mlflow", "q", "q_files", "full")
SAMPLED = (("full", "fifth"), ("full", "all"), ("mlflow", "all"))
"""Whose memory is taken, and over which users."""
ZSTD = {"compression": "zstd", "parquet.compression.codec.zstd.level": "1"}
"""Spark's writer, at the level that Arrow's has by default."""
SAME_USERS = [("candidate_id", "<", "c000020000")]
"""Users whose Q is compared."""
MODULE = "benchmarks.score"
PACKAGES = ("pyspark", "mlflow", "onnxruntime", "pyarrow", "numpy", "pandas")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

Users = Annotated[int, typer.Option(min=1000, help="users, of 32 features each")]
Out = Annotated[Path, typer.Option(help="where the users, the models and summary.json lie")]
Threads = Annotated[int, typer.Option(min=1, help="of both contenders")]
Batch = Annotated[int, typer.Option(min=1, help="rows of an Arrow batch, of both contenders")]
Heap = Annotated[str, typer.Option(help="spark.driver.memory")]


def config_of(out: Path, threads: int, batch: int, heap: str) -> Config:
    tree = {
        "name": "bench-score",
        "run_dir": str(out / "run"),
        "rewards": REWARDS,
        "data": {name: {"path": str(out / name)} for name in ("decisions", "events")},
        "features": {"context": [f"f{number:02d}" for number in range(FEATURES)]},
        "constraints": {"quiet_hours": [22, 8], "max_sends_24h": 2, "max_sends_7d": 8, "min_gap_hours": 4},
        "etl": {"as_of": "2026-03-01T00:00:00Z"},
        "train": {"weights": WEIGHTS},
        "policy": {"rollout_share": 0.9, "exploration": 0.05},
        "spark": {
            "master": f"local[{threads}]",
            "conf": {"spark.driver.memory": heap, "spark.sql.execution.arrow.maxRecordsPerBatch": str(batch)},
        },
    }
    return validate(tree, "benchmarks/score.py")


def write_users(users: int, folder: Path) -> None:
    """Parquet files of at most FILE_ROWS users; a state of normal numbers, one in a hundred of them unknown."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part, start in enumerate(range(0, users, FILE_ROWS)):
        rng, n = np.random.default_rng(part), min(FILE_ROWS, users - start)
        state = rng.standard_normal((n, FEATURES), dtype=np.float32)
        state[rng.random(state.shape, dtype=np.float32) < 0.01] = np.nan
        ids = np.char.mod("u%09d", np.arange(start, start + n))
        facts = {
            "notifications_on": (rng.random(n) < 0.9).astype(float),
            "local_hour": rng.random(n) * 24,
            "sends_24h": rng.poisson(0.7, n).astype(float),
            "sends_7d": rng.poisson(4, n).astype(float),
            "hours_since_send": np.where(rng.random(n) < 0.2, np.nan, rng.exponential(30, n)),
        }
        flat = pa.array(state.ravel())
        columns = {
            "candidate_id": pa.array(np.char.replace(ids, "u", "c")),
            "user_id": pa.array(ids),
            "decide_at": pa.array(np.full(n, 1_772_323_200_000_000), pa.timestamp("us", "UTC")),
            "state": pa.FixedSizeListArray.from_arrays(flat, FEATURES).cast(pa.list_(pa.float32())),
            **{name: pa.array(facts[name]) for name in FACTS},
        }
        pq.write_table(pa.table(columns), folder / f"{part:04d}.parquet", compression="zstd")


def write_policy(config: Config, folder: Path) -> Path:
    """An artifact of random networks whose prices range over all there is."""
    contract, rewards = config.contract, len(REWARDS)
    mean, std, sigma = np.zeros(FEATURES, np.float32), np.ones(FEATURES, np.float32), np.ones(rewards)
    scales = Scales(mean, std, sigma, 1.0, np.array([WEIGHTS[name] for name in REWARDS]))

    def network(components: int, seed: int) -> Any:
        around = torch.from_numpy(mean), torch.from_numpy(std), torch.zeros(components), torch.ones(components)
        return initial([seed], HIDDEN, *around, len(contract.actions)).member(0)

    learned = Learned(
        name="ddqn_cql", learner=Learner(alpha=1.0), contract=contract, scales=scales, q_network=network(rewards, 1),
        q_weights=scales.inner, behaviour=network(1, 2), values=network(rewards, 3), curves=[], agreement=None,
    )  # fmt: skip
    policy = config.policy
    decision = {"rollout_share": policy.rollout_share, "exploration": policy.exploration, "lambda": 0.0}
    ranged = {**decision, "lambda_low": -100.0, "lambda_high": 100.0}
    return artifact.export(learned, folder, ranged, {"data_version": 0, "etl_hash": config.etl_hash()})


def write_models(config: Config, out: Path) -> None:
    """The artifact, and Q of its graph as MLflow has it, by the tensor signature of its input.

    One output for each action: lists of lists MLflow turns into columns of objects, at two thirds of the speed or less.
    """
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    policy, model = write_policy(config, out / "policy"), out / "mlflow"
    graph = onnx.load_from_string(artifact.only((policy / artifact.GRAPH).read_bytes(), ["q"]))
    names = [f"q_{action}" for action in config.actions]
    apart = [f"{name}_apart" for name in names]
    make, kind = onnx.helper, onnx.TensorProto
    graph.graph.initializer.append(make.make_tensor("across", kind.INT64, [1], [1]))
    graph.graph.node.append(make.make_node("Split", ["q"], apart, axis=1, num_outputs=len(names)))
    graph.graph.node.extend(
        make.make_node("Squeeze", [a, "across"], [name]) for a, name in zip(apart, names, strict=True)
    )
    del graph.graph.output[:]
    graph.graph.output.extend(make.make_tensor_value_info(name, kind.FLOAT, ["rows"]) for name in names)
    onnx.checker.check_model(graph)
    shutil.rmtree(model, ignore_errors=True)
    mlflow.onnx.save_model(
        graph,
        str(model),
        signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, FEATURES), "state")])),
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "onnxruntime")],
        onnx_execution_providers=["CPUExecutionProvider"],
        # As ours: Spark runs a worker on each core already.
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )


def night_of(config: Config, folder: Path, root: Path) -> Night:
    loaded = artifact.load(folder)
    return Night(
        plan=make_plan(config, as_of(config) + 1, 0),
        files={path.name: path.read_bytes() for path in sorted(folder.iterdir())},
        fingerprint=loaded.fingerprint,
        version="1",
        night="2026-03-01",
        valid_us=86_400_000_000,
        rules=Rules(seed=7, fallback=0, judge_new=True),
        resume=None,
        forgotten=frozenset(),
        schemas={},
        root=root.resolve(),
        run=new_run(),
    )


Contender = Callable[[], Report]
"""Leaves its files in a folder of SINK, and returns what it says of them beside."""
SINK = "said"


def contenders(spark: SparkSession, config: Config, out: Path, size: str) -> dict[str, Contender]:
    """By NAMES: what writes what is said of the users of that size."""
    import mlflow.pyfunc

    folder, sink = out / "users" / size, out / SINK
    users, files = spark.read.parquet(str(folder)), States.of(spark, folder)
    udf = mlflow.pyfunc.spark_udf(spark, str(out / "mlflow"), result_type="array<float>", env_manager="local")
    network, rows = Network.of(out / "policy", ("q",)), users.count()

    def by_spark(found: DataFrame, name: str) -> Report:
        found.write.options(**ZSTD).parquet(str(sink / name))
        return {}

    def by_mlflow() -> Report:
        return by_spark(users.select("candidate_id", udf("state").alias("q")), "mlflow")

    def q() -> Report:
        return by_spark(predicted(States.of(spark, users), network, ["candidate_id"]), "q")

    def q_files() -> Report:
        write_predicted(files, network, ["candidate_id"], sink / "q_files")
        return {}

    def full() -> Report:
        found = decided(files, night_of(config, out / "policy", sink / "full"), QUOTA * rows)
        return {**found.quota.as_dict(), "drawn": found.counts["sends"]}

    return dict(zip(NAMES, (by_mlflow, q, q_files, full), strict=True))


def said(out: Path, name: str, columns: list[str], filters: Any = None) -> pa.Table:
    """What a contender left; of a Delta table what its newest commit names."""
    folder = out / SINK / name
    if DeltaTable.is_deltatable(str(folder)):
        return DeltaTable(folder).to_pyarrow_table(columns=columns, filters=filters)
    return pq.read_table(folder, columns=columns, filters=filters)


@app.command(name="bench")
def bench(
    users: Users = 5_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="timed runs of each contender")] = 5,
    out: Out = Path("runs/bench-score"),
    threads: Threads = 2,
    batch: Batch = 65_536,
    heap: Heap = "2g",
    peak: Annotated[bool, typer.Option(help="also take the peak memory")] = True,
) -> None:
    """The whole benchmark; writes OUT/summary.json."""
    config = config_of(out, threads, batch, heap)
    sizes = {"fifth": users // 5, "all": users}
    for size, number in sizes.items():
        with console.status(f"writing {number:,} users"):
            write_users(number, out / "users" / size)
    write_models(config, out)
    load = os.getloadavg()
    options = ["--out", out, "--threads", threads, "--batch", batch, "--heap", heap]
    timed, _ = run_child(MODULE, "time", [*options, "--rounds", rounds])
    peaks: dict[str, dict[str, int]] = {name: {} for name in NAMES}
    for name, size in SAMPLED if peak else ():
        _, peaks[name][size] = run_child(MODULE, "memory", [*options, "--size", size, "--contender", name])
        console.print(f"  {name}, {sizes[size]:,} users: peak {peaks[name][size] / 2**30:.2f} GiB")
    shutil.rmtree(out / SINK, ignore_errors=True)
    summary = {
        **summarised(timed["seconds"], users),
        "cpu_us_per_user": {name: median(each) / users * 1e6 for name, each in timed["cpu_seconds"].items()},
        "q_difference": timed["q_difference"],
        "peak_bytes": peaks["full"].get("all"),
        "peaks": peaks,
        "quota": timed["quota"],
        "users": users,
        "settings": {"threads": threads, "batch": batch, "heap": heap, "rounds": rounds, "sink": "parquet, zstd"},
        "machine": {
            "cores": os.cpu_count(),
            "load_before": load,
            "load_after": os.getloadavg(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2))
    told(summary)
    if summary["q_difference"] > TOLERANCE:
        console.print(f"Q differs from MLflow's by {summary['q_difference']:.2g}", style="bold red")
        raise typer.Exit(1)
    missed = [name for name, bar in BARS.items() if summary[name] < bar]
    if missed:
        console.print(f"below the bar: {', '.join(missed)}", style="bold red")
        raise typer.Exit(1)


@app.command(name="time")
def timed(
    rounds: Annotated[int, typer.Option()] = 5,
    out: Out = Path("runs/bench-score"),
    threads: Threads = 2,
    batch: Batch = 65_536,
    heap: Heap = "2g",
) -> None:
    """All contenders in turn in one session, and how far their Q lie apart; writes OUT/time.json."""
    config = config_of(out, threads, batch, heap)
    spark = spark_session(config.spark, "bench-score")
    # To load classes and models.
    for name, contender in contenders(spark, config, out, "fifth").items():
        shutil.rmtree(out / SINK / name, ignore_errors=True)
        contender()
    found, told_of = contenders(spark, config, out, "all"), dict[str, Report]()
    seconds: dict[str, list[float]] = {name: [] for name in found}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds):
        for name, contender in found.items():
            shutil.rmtree(out / SINK / name, ignore_errors=True)
            started, used = time.perf_counter(), cpu_seconds()
            told_of[name] = contender()
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(cpu_seconds() - used)
            console.print(f"  round {turn + 1} {name}: {seconds[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of CPU")
    result = {"seconds": seconds, "cpu_seconds": cpu, "q_difference": q_difference(out), "quota": told_of["full"]}
    (out / "time.json").write_text(json.dumps(result, indent=2))
    spark.stop()


@app.command(name="memory")
def memory(
    contender: Annotated[str, typer.Option()],
    size: Annotated[str, typer.Option()] = "all",
    out: Out = Path("runs/bench-score"),
    threads: Threads = 2,
    batch: Batch = 65_536,
    heap: Heap = "2g",
) -> None:
    """One contender alone, once; writes OUT/memory.json. Whoever starts it samples its memory."""
    config = config_of(out, threads, batch, heap)
    spark = spark_session(config.spark, "bench-score")
    shutil.rmtree(out / SINK / contender, ignore_errors=True)
    contenders(spark, config, out, size)[contender]()
    (out / "memory.json").write_text("{}")
    spark.stop()


def cpu_seconds() -> float:
    """Of this process, the JVM and the Python workers, which stay from run to run."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    total = 0.0
    for process in tree:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            used = process.cpu_times()
            total += used.user + used.system
    return total


def q_difference(out: Path) -> float:
    """The largest distance of Q from MLflow's, over SAME_USERS.

    Raises ValueError where a contender left fewer rows, or more, than MLflow.
    """
    few = [said(out, name, ["candidate_id", "q"], SAME_USERS).sort_by("candidate_id") for name in NAMES[:3]]
    rows = [said(out, name, ["candidate_id"]).num_rows for name in NAMES]
    if set(rows) != {rows[0]} or any(each["candidate_id"] != few[0]["candidate_id"] for each in few):
        raise ValueError(f"rows that were left: {dict(zip(NAMES, rows, strict=True))}; they must be of the same users.")
    theirs, *ours = (np.stack(each["q"].to_numpy()) for each in few)
    return float(max(np.abs(each - theirs).max() for each in ours))


def summarised(seconds: dict[str, list[float]], users: int) -> Report:
    """Medians, rates, and their ratios to mlflow's."""
    rate = {name: users / median(each) for name, each in seconds.items()}
    return {
        "to_mlflow_spark_udf": rate["q"] / rate["mlflow"],
        **{f"{name}_to_mlflow": each / rate["mlflow"] for name, each in rate.items() if name != "mlflow"},
        "users_per_s": rate["full"],
        "rates": rate,
        "seconds": seconds,
    }


def told(summary: Report) -> None:
    """Rates, ratios, and what a hundred million users need."""
    table = Table(title=f"{summary['users']:,} users, {FEATURES} features", title_justify="left")
    for column in ("contender", "users/s", "to mlflow", "CPU us/user", "peak, GiB", "100 M users"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, rate in summary["rates"].items():
        peak = summary["peaks"][name].get("all")
        hours = f"{A_HUNDRED_MILLION / rate / 60:,.0f} min"
        ratio = f"{rate / summary['rates']['mlflow']:.2f}"
        cpu = f"{summary['cpu_us_per_user'][name]:.1f}"
        table.add_row(name, f"{rate:,.0f}", ratio, cpu, "–" if peak is None else f"{peak / 2**30:.2f}", hours)
    console.print(table)
    threads, minutes = summary["settings"]["threads"], A_HUNDRED_MILLION / summary["users_per_s"] / 60
    console.print(
        f"A hundred million users need {minutes:.1f} minutes of {threads} cores for the whole decision, "
        f"{minutes * threads / 60:.2f} core-hours. The aim for Q alone is {AIM}x, it is {summary['q_to_mlflow']:.2f}x."
    )


if __name__ == "__main__":
    app()
