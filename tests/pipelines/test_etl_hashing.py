"""XXH64 against Spark's own, and buckets against Spark's pmod: what was put into a bucket once stays in it."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from pipelines.etl.hashing import SEED, bucket_of, xxhash64

LETTERS = {1: "aZ9 /\x00", 2: "é", 3: "漢\u200d", 4: "😀"}
"""By their bytes in UTF-8."""
BUCKETS = (1, 2, 8, 1000, 2**31 - 1)
MEGABYTE = 1 << 20


def text(rng: random.Random, size: int) -> str:
    """Exactly so many bytes."""
    made, left = [], size
    while left:
        width = rng.randint(1, min(left, 4))
        made.append(rng.choice(LETTERS[width]))
        left -= width
    return "".join(made)


def texts() -> list[tuple[str | None, str | None]]:
    """Two texts of every size from 0 to 100 bytes, some of them null."""
    rng = random.Random(0)
    pairs: list[tuple[str | None, str | None]] = []
    for size in range(101):
        pairs += [(text(rng, size), text(rng, rng.randrange(101))) for _ in range(2)]
    pairs += [(None, None), (None, "a"), ("a", None), (None, "")]
    rng.shuffle(pairs)
    return pairs


@pytest.fixture(scope="module")
def hashed(spark: SparkSession) -> list[Row]:
    """What Spark makes of the texts, of both together, and of buckets."""
    frame = spark.createDataFrame([(n, *pair) for n, pair in enumerate(texts())], "n int, one string, two string")
    buckets = (F.pmod(F.xxhash64("one"), F.lit(n)).alias(f"bucket{n}") for n in BUCKETS)
    both = F.xxhash64("one", "two").alias("both")
    found: list[Row] = frame.select("n", F.xxhash64("one").alias("one"), both, *buckets).orderBy("n").collect()
    return found


def signed(values: object) -> list[int]:
    found: list[int] = np.asarray(values).view(np.int64).tolist()
    return found


ONE = pa.array([one for one, _ in texts()], pa.string())
TWO = pa.array([two for _, two in texts()], pa.string())


def test_the_sizes_are_all_there() -> None:
    sizes = {len(one.encode()) for one, _ in texts() if one is not None}
    assert sizes == set(range(101))


def test_it_is_the_hash_of_spark(hashed: list[Row]) -> None:
    assert signed(xxhash64(ONE)) == [row["one"] for row in hashed]
    # A null leaves the seed as it is, whatever else is hashed.
    assert xxhash64(pa.array([None], pa.string())).tolist() == [SEED]


def test_a_megabyte_is_hashed_too(spark: SparkSession) -> None:
    """Beside a short one, so that the stripes of one text end long before those of the other."""
    found = [text(random.Random(size), size) for size in (MEGABYTE + 37, 64)]
    wanted = spark.createDataFrame([(each,) for each in found], "one string").select(F.xxhash64("one")).collect()
    assert signed(xxhash64(pa.array(found))) == [row[0] for row in wanted]


def test_a_second_column_is_hashed_with_the_first_as_seed(hashed: list[Row]) -> None:
    assert signed(xxhash64(TWO, xxhash64(ONE))) == [row["both"] for row in hashed]


def test_buckets_are_those_of_pmod(hashed: list[Row]) -> None:
    """Of the signed hash: half of them are negative."""
    hashes = xxhash64(ONE)
    assert 0 < (hashes.view(np.int64) < 0).sum() < len(hashes)
    for buckets in BUCKETS:
        assert bucket_of(hashes, buckets).tolist() == [row[f"bucket{buckets}"] for row in hashed], buckets


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_how_the_texts_are_stored_does_not_matter(kind: pa.DataType) -> None:
    wanted = xxhash64(ONE).tolist()
    given = ONE.dictionary_encode() if pa.types.is_dictionary(kind) else ONE.cast(kind)
    assert xxhash64(given).tolist() == wanted
    for first, rows in ((0, 7), (1, 50), (13, 0), (100, 1), (len(wanted) - 3, 3)):
        assert xxhash64(given.slice(first, rows)).tolist() == wanted[first : first + rows]
    cuts = [0, 0, 1, 40, 40, 120, len(wanted)]
    parts = [given.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
    chunked = pa.chunked_array(parts)
    assert xxhash64(chunked).tolist() == wanted
    assert xxhash64(chunked.slice(30, 25)).tolist() == wanted[30:55]
    seeds = xxhash64(TWO)
    assert xxhash64(chunked, seeds).tolist() == xxhash64(ONE, seeds).tolist()


def test_no_texts_and_texts_without_a_byte() -> None:
    # XXH64 of no bytes with seed 0 is the specification's own example.
    assert xxhash64(pa.array([""]), 0).tolist() == [0xEF46DB3751D8E999]
    empty = int(xxhash64(pa.array([""]))[0])
    assert xxhash64(pa.array(["", None, ""])).tolist() == [empty, SEED, empty]
    assert xxhash64(pa.array(["long enough", "", None]).slice(1)).tolist() == [empty, SEED]
    for none in (pa.array([], pa.string()), pa.chunked_array([], pa.string()), ONE.slice(5, 0)):
        assert xxhash64(none).shape == (0,)
        assert bucket_of(xxhash64(none), 4).shape == (0,)
    # Hashing is not mutating: neither the texts nor the seeds.
    seeds = np.arange(2, dtype=np.uint64)
    assert xxhash64(pa.array(["a", None]), seeds)[1] == 1
    assert seeds.tolist() == [0, 1]
