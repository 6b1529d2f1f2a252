"""One Spark session with the settings that every job needs, on one machine or on a cluster."""

import atexit
import logging
import os
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from pyspark.find_spark_home import _find_spark_home
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

import models
import pipelines
import policies
from models.errors import InputError
from pipelines.sections import SparkConfig

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
    "spark.log.level": "ERROR",
    # Readers see only what the Delta log names, so that moving every file twice would protect nobody.
    "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
}
LOGGING = Path(__file__).with_name("log4j2.properties")
FORMATS = ("properties", "yaml", "yml", "json", "jsn", "xml")
"""Of a log4j2 file on the class path, to which Spark's conf folder belongs."""
OPTIONS = ("SPARK_SUBMIT_OPTS", "JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS")
"""Variables whose options the driver's JVM takes."""
CHOSEN = re.compile(r"-Dlog4j2?\.configurationFile=")
ACCOUNTS = ("DataFrameQueryContextLogger", "SQLQueryContextLogger")
"""Loggers to which PySpark gives a page of stack trace for every expression that it cannot resolve."""
LOOPBACK = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
"""Where every executor is on this machine."""


def spark_session(config: SparkConfig, app: str) -> SparkSession:
    """The running session, or a new one on `config.master`; `config.conf` overrides every setting.

    Workers on `local` import this package from where it lies; those of any other master get it as one archive, so that
    their Python needs only numpy and pyarrow (and onnxruntime to score). That Python is PYSPARK_PYTHON, or where it is
    not set the driver's.

    Raises InputError where Java is missing.
    """
    if not _has_java():
        raise InputError("Java was not found; install Java 17 (openjdk-17-jre-headless) or set JAVA_HOME.")
    forked = config.master == "local" or config.master.startswith("local[")
    settings = {**SETTINGS, "spark.sql.shuffle.partitions": str(config.shuffle_partitions)}
    if forked or config.master.startswith("local-cluster["):
        settings |= LOOPBACK
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if forked:
        _share_path()
    _quieten()
    logging.getLogger("py4j").setLevel(logging.WARNING)
    for name in ACCOUNTS:
        # The exception says the same in a line, and its reader must not look for it under the trace.
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL)
    builder = SparkSession.builder.appName(app).master(config.master)
    for key, value in {**settings, **config.conf}.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    if not forked:
        spark.sparkContext.addPyFile(str(archive()))
    return spark


def _quieten() -> None:
    """Let the JVM log errors alone from its first line on, unless a logging is chosen: by a log4j2 file in Spark's conf
    folder (SPARK_CONF_DIR, else SPARK_HOME/conf), or by log4j2.configurationFile, under its old name too, in OPTIONS.

    By SPARK_SUBMIT_OPTS: `spark.driver.extraJavaOptions` would take the place of what a cluster's defaults have there.
    """
    folder = Path(os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home()) / "conf")
    if any(CHOSEN.search(os.environ.get(name, "")) for name in OPTIONS):
        return
    if any((folder / f"log4j2.{kind}").exists() for kind in FORMATS):
        return
    given = os.environ.get("SPARK_SUBMIT_OPTS", "")
    os.environ["SPARK_SUBMIT_OPTS"] = f"-Dlog4j2.configurationFile={LOGGING.as_uri()} {given}".strip()


def archive() -> Path:
    """A zip of every Python file of this package, in a folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="tactful-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / "tactful.zip"
    # Installers that build reproducibly date files before 1980, which a zip cannot say.
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as into:
        for package in (models, policies, pipelines):
            root = Path(package.__path__[0])
            for path in sorted(root.rglob("*.py")):
                into.write(path, path.relative_to(root.parent))
    return made


def _share_path() -> None:
    """Let workers forked on this machine import the kernels from where this very module was imported."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java") is not None or (home is not None and (Path(home) / "bin" / "java").exists())
