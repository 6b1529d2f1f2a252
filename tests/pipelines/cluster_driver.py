"""A driver of its own for a cluster: `cluster_driver.py CONFIG.json REPORT.json POLICY` runs the ETL, scores the night
with the artifact in the folder POLICY, and writes what both reported."""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.config import validate
from pipelines.etl.flow import run_etl
from pipelines.scoring.night import run_scoring
from pipelines.session import spark_session


def whereabouts(_: int) -> tuple[str, str, str]:
    """(working directory, the kernel's file, folder of numpy) of the worker that runs this."""
    import numpy

    from pipelines.etl import transitions

    # Long enough for each executor to get one.
    time.sleep(0.3)
    return os.getcwd(), str(transitions.__file__), str(Path(numpy.__file__).parent)


config = validate(json.loads(Path(sys.argv[1]).read_text()), sys.argv[1])
spark = spark_session(config.spark, "cluster")
application = spark.sparkContext.applicationId
try:
    workers = spark.sparkContext.parallelize(range(4), 4).map(whereabouts).collect()
    report = run_etl(spark, config)
    scored = run_scoring(spark, config, Path(sys.argv[3]), "1")
finally:
    spark.stop()
found = {**report, "scored": scored, "workers": workers, "application": application}
Path(sys.argv[2]).write_text(json.dumps(found, default=str))
