"""Spark's ETL against DuckDB on one log: `make bench-etl`, or `python -m benchmarks.etl --decisions 250000`.

For half the size and for the full size, each in processes of their own:

1. `time`: session start and the first (cold) run of both, then Spark and DuckDB in turn, `rounds` times each, with the
   session up; at last their outputs are compared row by row.
2. `memory`: one contender alone, a cold and a warm run, while the memory of its process tree is sampled.

The heap of the JVM and the rows of a bucket are the same at both sizes. Every run of Spark starts without a table.

`python -m benchmarks.etl day` times one day's run at the end of a long log instead.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import pyarrow.dataset as pads
import typer
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from rich.console import Console
from rich.table import Table

from benchmarks.etl_duckdb import run_duckdb
from benchmarks.etl_equal import differences
from benchmarks.etl_log import LogConfig, write_log
from pipelines.config import Config, validate
from pipelines.etl.features import DAY
from pipelines.etl.flow import run_etl
from pipelines.sections import STATE_FEATURES
from pipelines.session import spark_session

Report = dict[str, Any]

REWARDS = ["sends", "clicks", "visits", "weekly_active_days", "disables"]
EVENTS_PER_DECISION = 4
SAMPLE_SECONDS = 0.25
PACKAGES = ("pyspark", "duckdb", "pyarrow", "numpy", "deltalake")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

Decisions = Annotated[int, typer.Option(min=1000, help="decisions of the full size; half of them at half the size")]
Out = Annotated[Path, typer.Option(help="where the log, the outputs and summary.json lie")]
Threads = Annotated[int, typer.Option(min=1, help="of both contenders")]
Buckets = Annotated[int, typer.Option(min=1, help="user buckets; `bench` takes half of them at half the size")]
Heap = Annotated[str, typer.Option(help="spark.driver.memory")]


def config_of(lake: Path, run_dir: Path, log: LogConfig, buckets: int, threads: int, heap: str, **etl: Any) -> Config:
    """The configuration that both contenders follow; `etl` are further keys of [etl]."""
    tree = {
        "name": "bench-etl",
        "run_dir": str(run_dir),
        "rewards": REWARDS,
        "data": {name: {"path": str(lake / name)} for name in ("decisions", "events", "users")},
        "features": {"state": list(STATE_FEATURES), "context": ["relevance"], "attributes": ["tenure_days"]},
        "etl": {"as_of": log.as_of, "buckets": buckets, **etl},
        "train": {"weights": {"clicks": 1.0}},
        "spark": {
            "master": f"local[{threads}]",
            "shuffle_partitions": buckets,
            "conf": {"spark.driver.memory": heap},
        },
    }
    return validate(tree, "benchmarks/etl.py")


def compare(config: Config, duckdb_out: Path) -> list[str]:
    """The first differences between Spark's transitions and DuckDB's; none where they are equal."""
    delta, parquet = DeltaTable(config.transitions_path), duckdb_out / "transitions"
    days = {str(path.name).removeprefix("ds=") for path in parquet.iterdir()}
    days |= {partition["ds"] for partition in delta.partitions()}

    def by_duckdb(day: str) -> Any:
        files = pads.dataset(sorted((parquet / f"ds={day}").glob("*.parquet")))
        table = files.to_table()
        return table.append_column("ds", [[day] * table.num_rows])

    return differences(lambda day: delta.to_pyarrow_table(partitions=[("ds", "=", day)]), by_duckdb, sorted(days))


def compare_counts(spark: Report, duckdb: Report) -> list[str]:
    """Differences between the counts of raw rows in two reports."""
    return [
        f"{name}.{key}: {spark['rows'][name][key]} against {counts[key]}"
        for name, counts in duckdb["rows"].items()
        for key in ("read", "kept", "exact_duplicates", "by_reason")
        if spark["rows"][name][key] != counts[key]
    ]


@app.command(name="bench")
def bench(
    decisions: Decisions = 5_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="timed runs of each contender")] = 3,
    out: Out = Path("runs/bench-etl"),
    threads: Threads = 2,
    buckets: Buckets = 32,
    heap: Heap = "4g",
) -> None:
    """The whole benchmark; writes OUT/summary.json."""
    sizes = {"half": (decisions // 2, max(buckets // 2, 1)), "full": (decisions, buckets)}
    found: Report = {}
    for size, (rows, parts) in sizes.items():
        with console.status(f"{size} size: writing a log of {rows:,} decisions"):
            log = write_log(LogConfig(decisions=rows), out / size / "lake")
        console.print(f"[bold]{size} size[/]: {log['decisions']:,} decisions, {log['events']:,} events, "
                      f"{log['bytes'] / 2**20:,.0f} MiB")  # fmt: skip
        options = ["--decisions", rows, "--out", out / size, "--threads", threads, "--buckets", parts, "--heap", heap]
        timed, _ = run_child("benchmarks.etl", "time", [*options, "--rounds", rounds])
        found[size] = timed | {"log": log}
        for contender in ("spark", "duckdb"):
            _, peak = run_child("benchmarks.etl", "memory", [*options, "--contender", contender])
            found[size][contender]["peak_bytes"] = peak
            console.print(f"  {contender}: peak of the process tree {peak / 2**30:.2f} GiB")
    summary = _summary(found) | {
        "threads": threads,
        "heap": heap,
        "rounds": rounds,
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    console.print(_shown(found))
    console.print(
        f"Spark to DuckDB, without the quality suites: {summary['ratio_to_duckdb']:.2f} "
        f"(half size {summary['ratio_to_duckdb_half']:.2f}); peak memory at full to half size: "
        f"{summary['peak_ratio']:.2f}. Written: {out / 'summary.json'}"
    )
    unequal = [line for size in found.values() for line in size["differences"]]
    if unequal:
        console.print("The outputs differ:", *unequal, sep="\n  ", style="bold red")
        raise typer.Exit(1)


def run_child(module: str, step: str, options: list[Any]) -> tuple[Report, int]:
    """Run one step of a benchmark in a process of its own; what it found and the peak memory of its tree, bytes."""
    result = Path(options[options.index("--out") + 1]) / f"{step}.json"
    result.unlink(missing_ok=True)
    words = [sys.executable, "-m", module, step, *map(str, options)]
    # Sampling stops the sampled process for a moment, so that only memory is taken while it is asked for.
    process, peak = subprocess.Popen(words), 0
    while process.poll() is None:
        if step == "memory":
            peak = max(peak, _tree_bytes(process.pid))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode or not result.exists():
        console.print(f"{module} {step} ended with {process.returncode}; what it printed says why.", style="red")
        raise typer.Exit(1)
    found: Report = json.loads(result.read_text())
    return found, peak


def _tree_bytes(root: int) -> int:
    """Memory of a process and all below it: pages shared by some of them count once between them (PSS)."""
    total = 0
    try:
        tree = [psutil.Process(root)]
        tree += tree[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            found = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        total += int(getattr(found, "pss", 0) or found.uss)
    return total


@app.command(name="time")
def time_(
    decisions: Decisions,
    out: Out,
    threads: Threads,
    buckets: Buckets,
    heap: Heap,
    rounds: Annotated[int, typer.Option()],
) -> None:
    """Session start, cold runs, alternated warm runs and the comparison of one size, into OUT/time.json."""
    config = config_of(out / "lake", out / "spark", LogConfig(decisions=decisions), buckets, threads, heap)
    started = time.perf_counter()
    spark = spark_session(config.spark, "bench-etl")
    session = time.perf_counter() - started
    cold_spark, _ = _spark(spark, config, "cold")
    cold_duckdb, _ = _duckdb(config, out, threads, "cold")
    runs: dict[str, list[tuple[float, Report]]] = {"spark": [], "duckdb": []}
    for turn in range(rounds):
        runs["spark"].append(_spark(spark, config, f"{turn + 1} of {rounds}"))
        runs["duckdb"].append(_duckdb(config, out, threads, f"{turn + 1} of {rounds}"))
    spark.stop()
    with console.status("  comparing"):
        unequal = compare(config, out / "duckdb") + compare_counts(runs["spark"][-1][1], runs["duckdb"][-1][1])
    console.print(f"  outputs {'[red]differ[/]' if unequal else 'are equal'}")
    suites = median(report.get("seconds", {}).get("quality", 0.0) for _, report in runs["spark"])
    seconds = {name: median(wall for wall, _ in runs[name]) for name in runs}
    found = {
        "buckets": buckets,
        "differences": unequal,
        "transitions": runs["spark"][-1][1]["rows"]["transitions"],
        "spark": {
            "session_seconds": session,
            "cold_seconds": cold_spark,
            "seconds": seconds["spark"],
            "quality_seconds": suites,
            "seconds_without_quality": median(
                wall - report.get("seconds", {}).get("quality", 0.0) for wall, report in runs["spark"]
            ),
        },
        "duckdb": {"cold_seconds": cold_duckdb, "seconds": seconds["duckdb"]},
    }
    for name, each in runs.items():
        found[name] |= {"runs": [wall for wall, _ in each], "phases": [report.get("seconds") for _, report in each]}
    (out / "time.json").write_text(json.dumps(found, indent=1))


@app.command()
def memory(
    decisions: Decisions,
    out: Out,
    threads: Threads,
    buckets: Buckets,
    heap: Heap,
    contender: Annotated[str, typer.Option()],
) -> None:
    """A cold and a warm run of one contender, to be sampled from outside."""
    config = config_of(out / "lake", out / "spark", LogConfig(decisions=decisions), buckets, threads, heap)
    if contender == "spark":
        spark = spark_session(config.spark, "bench-etl")
        for turn in ("cold", "warm"):
            _spark(spark, config, f"{turn}, sampled")
        spark.stop()
    else:
        for turn in ("cold", "warm"):
            _duckdb(config, out, threads, f"{turn}, sampled")
    (out / "memory.json").write_text("{}")


@app.command()
def day(
    decisions: Annotated[int, typer.Option(min=1000)] = 1_400_000,
    days: Annotated[int, typer.Option(min=3, help="arrival days of the log; the last is taken in alone")] = 70,
    rounds: Annotated[int, typer.Option(min=1, help="timed runs over the last day")] = 3,
    out: Out = Path("runs/bench-etl-day"),
    threads: Threads = 2,
    buckets: Buckets = 8,
    heap: Heap = "4g",
) -> None:
    """A run over the newest day of a long log against one over everything; writes OUT/summary.json."""
    log = LogConfig(decisions=decisions, days=days)
    written = write_log(log, out / "lake")
    config = config_of(out / "lake", out / "spark", log, buckets, threads, heap)
    # Clocks that are ahead arrive on a day beyond the last, which is left to come.
    last = log.end // DAY - 1
    first = last - days + 1
    spark = spark_session(config.spark, "bench-etl-day")
    whole = [_spark(spark, config, turn, (first, last)) for turn in ("cold", "everything")][-1]
    runs = []
    for turn in range(rounds):
        shutil.rmtree(config.run_dir)
        run_etl(spark, config, days=(first, last - 1))
        started = time.perf_counter()
        report = run_etl(spark, config, days=(last, last))
        runs.append(_told("spark", f"the last day, {turn + 1} of {rounds}", time.perf_counter() - started))
    spark.stop()
    found = {
        "log": written,
        "everything_seconds": whole[0],
        "day_seconds": median(runs),
        "runs": runs,
        "equal": report["fingerprint"] == whole[1]["fingerprint"],
        "rows": {"everything": whole[1]["rows"], "day": report["rows"]},
        "days": days,
        "threads": threads,
    }
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print(
        f"the last of {days} days: {found['day_seconds']:.1f} s, everything {whole[0]:.1f} s; the tables "
        f"{'are equal' if found['equal'] else '[red]differ[/]'}. Written: {out / 'summary.json'}"
    )
    if not found["equal"]:
        raise typer.Exit(1)


def _spark(spark: SparkSession, config: Config, turn: str, days: tuple[int, int] | None = None) -> tuple[float, Report]:
    """Wall seconds of the whole ETL, or of some days, into an empty folder, and its report."""
    shutil.rmtree(config.run_dir, ignore_errors=True)
    started = time.perf_counter()
    report = run_etl(spark, config, days=days)
    return _told("spark", turn, time.perf_counter() - started), report


def _duckdb(config: Config, out: Path, threads: int, turn: str) -> tuple[float, Report]:
    """Wall seconds of DuckDB, from opening a database to its last file, and its report."""
    started = time.perf_counter()
    report = run_duckdb(config, out / "duckdb", threads)
    return _told("duckdb", turn, time.perf_counter() - started), report


def _told(contender: str, turn: str, seconds: float) -> float:
    console.print(f"  {contender} ({turn}): {seconds:.2f} s")
    return seconds


def _summary(found: Report) -> Report:
    """What the benchmark is for, in one line each; all else under `sizes`."""
    full, half = found["full"], found["half"]
    read = {name: size["log"]["decisions"] + size["log"]["events"] for name, size in found.items()}

    def ratio(size: Report, key: str) -> float:
        return float(size["spark"][key] / size["duckdb"]["seconds"])

    return {
        "ratio_to_duckdb": ratio(full, "seconds_without_quality"),
        "ratio_to_duckdb_half": ratio(half, "seconds_without_quality"),
        "ratio_to_duckdb_with_quality": ratio(full, "seconds"),
        "ratio_to_duckdb_cold": ratio(full, "cold_seconds"),
        "rows_per_s": read["full"] / full["spark"]["seconds_without_quality"],
        "rows_per_s_half": read["half"] / half["spark"]["seconds_without_quality"],
        "peak_bytes": full["spark"]["peak_bytes"],
        "peak_bytes_half": half["spark"]["peak_bytes"],
        "peak_ratio": full["spark"]["peak_bytes"] / half["spark"]["peak_bytes"],
        "equal": not (full["differences"] or half["differences"]),
        "rows": read,
        "sizes": found,
    }


def _shown(found: Report) -> Table:
    table = Table("", *(f"{name}, {size}" for size in found for name in ("Spark", "DuckDB")))
    read = {name: size["log"]["decisions"] + size["log"]["events"] for name, size in found.items()}
    lines = {
        "session start, s": "session_seconds",
        "first run (cold), s": "cold_seconds",
        "warm, median, s": "seconds",
        "of it quality suites, s": "quality_seconds",
    }
    for title, key in lines.items():
        cells = (size[name].get(key) for size in found.values() for name in ("spark", "duckdb"))
        table.add_row(title, *("" if cell is None else f"{cell:.2f}" for cell in cells))
    seconds = [
        (read[name], size[contender][key])
        for name, size in found.items()
        for contender, key in (("spark", "seconds_without_quality"), ("duckdb", "seconds"))
    ]
    table.add_row("raw rows per s, without suites", *(f"{rows / each:,.0f}" for rows, each in seconds))
    peaks = (size[name]["peak_bytes"] / 2**30 for size in found.values() for name in ("spark", "duckdb"))
    table.add_row("peak memory, GiB", *(f"{peak:.2f}" for peak in peaks))
    return table


if __name__ == "__main__":
    app()
