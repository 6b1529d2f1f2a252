"""One Spark session with the settings that every job needs."""

import logging
import os
import shutil
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from models.errors import InputError
from pipelines.config import SparkConfig

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.log.level": "ERROR",
    # Readers see only what the Delta log names, so that moving every file twice would protect nobody.
    "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
}


def spark_session(config: SparkConfig, app: str) -> SparkSession:
    """The running session, or a new one on `config.master`; `config.conf` overrides every setting.

    Raises InputError where Java is missing.
    """
    if not _has_java():
        raise InputError("Java was not found; install Java 17 (openjdk-17-jre-headless) or set JAVA_HOME.")
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    # Workers import the kernels: from where this very module was imported.
    here = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if here not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])
    logging.getLogger("py4j").setLevel(logging.WARNING)
    builder = SparkSession.builder.appName(app).master(config.master)
    settings = {**SETTINGS, "spark.sql.shuffle.partitions": str(config.shuffle_partitions), **config.conf}
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java") is not None or (home is not None and (Path(home) / "bin" / "java").exists())
