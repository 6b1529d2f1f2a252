"""What the kernels need to know, from the configuration."""

from datetime import UTC, datetime, timedelta

from models.errors import InputError
from pipelines.config import Config
from pipelines.etl.features import DAY, HOUR, StateFeatures
from pipelines.etl.marks import Plan
from pipelines.etl.schemas import outcome_names

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_plan(config: Config, watermark: int, log_start: int) -> Plan:
    """The plan of a run, times in us. Raises InputError for times that cannot be read and spans that do not fit."""
    etl, features, gap = config.etl, config.features, config.constraints.min_gap_hours
    if gap is not None and gap > etl.lookback_days * 24:
        raise InputError(f"constraints.min_gap_hours is {gap}, longer than etl.lookback_days; nothing older is known.")
    return Plan(
        contract=config.logged_contract,
        outcomes=outcome_names(config.rewards),
        features=StateFeatures(
            features.state,
            features.context,
            features.context_categories,
            features.attributes,
            features.attribute_categories,
            features.click_prior,
        ),
        constraints=config.constraints,
        has_events=config.data.events is not None,
        buckets=etl.buckets,
        split=etl.split,
        as_of=as_of(config),
        watermark=watermark,
        log_start=log_start,
        lookback=round(etl.lookback_days * DAY),
        warmup=round(etl.warmup_days * DAY),
        max_lateness=max_lateness(config),
        max_gap=round(etl.max_gap_days * DAY),
        click_window=round(etl.click_window_hours * HOUR),
        session_gap=round(etl.session_gap_minutes * HOUR / 60),
    )


def max_lateness(config: Config) -> int:
    """How long after it happened a row may become known, us."""
    return round(config.etl.max_lateness_days * DAY)


def as_of(config: Config) -> int:
    """The moment after which nothing logged is believed, us: as configured, or now."""
    return moment(config.etl.as_of, "etl.as_of") if config.etl.as_of else _micros(datetime.now(UTC))


def watermark(config: Config, found: int) -> int:
    """W, us: as configured, or as found in the log."""
    return moment(config.etl.watermark, "etl.watermark") if config.etl.watermark else found


def text_of(moment: int) -> str:
    """A time in us as ISO 8601, UTC."""
    return (EPOCH + timedelta(microseconds=moment)).isoformat()


def moment(text: str, key: str) -> int:
    """A time in us from ISO 8601, UTC where it names no zone. Raises InputError naming the configuration's `key`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{key} is {text!r}; give a UTC time such as 2026-01-31T00:00:00.") from None
    return _micros(found if found.tzinfo else found.replace(tzinfo=UTC))


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)
