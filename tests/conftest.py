"""One Spark session for the whole test run, made when a test first asks for it."""

from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from pipelines.sections import SparkConfig
from pipelines.session import spark_session


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    # Small data: compiling costs more than it saves.
    quick = {"spark.sql.codegen.wholeStage": "false", "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1"}
    session = spark_session(SparkConfig(master="local[2]", shuffle_partitions=2, conf=quick), "tests")
    yield session
    session.stop()
