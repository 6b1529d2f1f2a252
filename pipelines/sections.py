"""The sections of a configuration and their keys, each with what it means; pipelines/config.py puts them together."""

import difflib
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from models.contract import HOLD
from models.errors import InputError
from models.rewards.judge.settings import JudgeConfig
from models.rewards.preference_config import PreferenceConfig
from models.rewards.settings import LoopConfig, NetworkConfig
from models.rewards.success import GoalConfig
from policies.named import check_separator

STATE_FEATURES = (
    "notifications_on",
    "sends_24h",
    "sends_7d",
    "clicks_24h",
    "clicks_7d",
    "visits_24h",
    "visits_7d",
    "hours_since_send",
    "send_never",
    "hours_since_visit",
    "visit_never",
    "badge",
    "click_rate_28d",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "candidate_missing",
)
"""Features the ETL computes from the log itself; a config names those it wants."""
LEARNED_REWARD = "learned:"
FALLBACK_LOGGING = "logging"
"""The score.fallback that is no action: the behaviour network's probabilities."""

MODEL_NAME = re.compile(r"[\w .-]+")


def suggest(name: str, known: Any) -> str:
    """`; did you mean X? Known: ...` for an error message."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(known)})"


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change."""

    # What is written down again (a record in MLflow, a copy with a change) has the keys of the file.
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class Dataset(Section):
    """Where one raw dataset lies and how its columns are called there."""

    path: Path
    """A file, or a folder of files at any depth; a relative path is relative to the working directory."""
    format: Literal["parquet", "csv", "json"] | None = None
    """By the suffix where absent: .csv is CSV, .json, .jsonl and .ndjson an object a line, each also followed by .gz;
    all else, and a folder, is Parquet."""
    separator: Annotated[str, AfterValidator(check_separator)] = ","
    """Between the columns of CSV."""
    where: str | None = None
    """A Spark SQL condition over the log's columns: rows that do not meet it are not read."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Tactful's column name -> a Spark SQL expression over the log's columns; an unmapped column keeps its name."""


class Data(Section):
    """The raw datasets; `decisions` is the only one a log must have."""

    decisions: Dataset
    events: Dataset | None = None
    users: Dataset | None = None
    candidates: Dataset | None = None


class Features(Section):
    """State features: the built-in ones by name, and columns of decisions and users."""

    state: list[str] = Field(default_factory=list)
    """Built-in features, see STATE_FEATURES."""
    context: list[str] = Field(default_factory=list)
    """Numeric columns of `decisions` (and `candidates`): relevance and the like."""
    context_categories: dict[str, list[str]] = Field(default_factory=dict)
    """Text columns of `decisions` and the values each may take: one indicator per value."""
    attributes: list[str] = Field(default_factory=list)
    """Numeric columns of `users`, as of the decision."""
    attribute_categories: dict[str, list[str]] = Field(default_factory=dict)
    """Text columns of `users` and the values each may take."""
    click_prior: tuple[float, float] = (1.0, 10.0)
    """(clicks, sends) added to a user's own when the click rate is smoothed."""

    @model_validator(mode="after")
    def known(self) -> Self:
        for name in self.state:
            if name not in STATE_FEATURES:
                raise InputError(f"features.state: {name!r} is not a built-in feature{suggest(name, STATE_FEATURES)}.")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """[S] feature names, in the order of the state."""
        return (
            *self.state,
            *self.context,
            *(f"{column}={value}" for column, values in self.context_categories.items() for value in values),
            *self.attributes,
            *(f"{column}={value}" for column, values in self.attribute_categories.items() for value in values),
        )


class Etl(Section):
    """How the log is cut into transitions."""

    as_of: str | None = None
    """UTC time after which nothing logged is believed; by default now."""
    watermark: str | None = None
    """W, UTC; by default the smallest over the datasets of the largest `logged_at` not after `as_of`."""
    lookback_days: float = Field(28, gt=0)
    warmup_days: float = Field(7, ge=0)
    max_lateness_days: float = Field(7, gt=0)
    max_gap_days: float = Field(7, gt=0)
    click_window_hours: float = Field(24, gt=0)
    session_gap_minutes: float = Field(30, gt=0)
    known_gaps: list[date] = Field(default_factory=list)
    """UTC arrival days (YYYY-MM-DD) known to be missing."""
    buckets: int = Field(8, ge=1)
    """User buckets of the transitions table, fixed at its creation."""
    split: tuple[float, float, float] = (0.6, 0.1, 0.3)
    """Shares of users in train, validation and test."""
    max_quarantined: float = Field(0.2, ge=0, le=1)
    """Share of quarantined decisions above which the run stops."""

    @field_validator("as_of", "watermark", mode="before")
    @classmethod
    def text(cls, moment: Any) -> Any:
        """TOML has dates and times of its own."""
        return moment.isoformat() if isinstance(moment, date) else moment

    @model_validator(mode="after")
    def shares(self) -> Self:
        if abs(sum(self.split) - 1) > 1e-9 or min(self.split) < 0:
            raise InputError(f"etl.split is {self.split}; three shares of 0 or more that sum to 1 are needed.")
        return self


class Quality(Section):
    """What a usual day is; a run holds its own days against it once `tactful quality` made thresholds."""

    reference: tuple[date, date] | None = None
    """First and last UTC day of a usual period: 7 whole days after the warm-up at least, whole weeks at best."""
    warning: float = Field(3, gt=0)
    """Robust standard deviations from the median at which a day is a warning, see etl/quality/thresholds.py."""
    critical: float = Field(6, gt=0)
    """The same at which a day stops the run."""
    accept: list[date] = Field(default_factory=list)
    """UTC days that differ for a known reason: no threshold judges them."""
    docs: bool = True
    """Build Great Expectations' Data Docs in every run."""

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.reference is not None and self.reference[0] > self.reference[1]:
            first, last = self.reference
            raise InputError(f"quality.reference is {first} to {last}; name the first day first.")
        if self.critical < self.warning:
            raise InputError(
                f"quality.critical is {self.critical:g}, below quality.warning {self.warning:g}; a warning comes first."
            )
        return self


class Policy(Section):
    """How a learned Q-function acts; part of the artifact, so that what is gated is what is deployed."""

    rollout_share: float = Field(1.0, gt=0, le=1)
    """kappa: act by (1 - kappa) mu + kappa pi, mu the behaviour network."""
    exploration: float = Field(0.02, ge=0, lt=1)
    """Probability spread uniformly over the legal actions, so that tomorrow's log can be evaluated."""
    volume: float | None = Field(None, gt=0)
    """Expected sends as a share of the logging policy's on the validation split, one step at a time: fixes lambda."""
    volume_range: tuple[float, float] | None = None
    """Smallest and largest volume that scoring may move lambda to; the gate judges all of it. By default `volume`."""
    lambda_: float = Field(0.0, alias="lambda", allow_inf_nan=False)
    """Price per send, in the unit of q, where no volume fixes it."""

    @model_validator(mode="after")
    def priced(self) -> Self:
        if self.volume is not None and "lambda_" in self.model_fields_set:
            raise InputError("policy.lambda: policy.volume fixes it; remove one of the two.")
        if self.volume_range is None:
            return self
        if self.volume is None:
            raise InputError("policy.volume_range: needs policy.volume, the point in it that is deployed; add it.")
        low, high = self.volume_range
        if not 0 < low <= self.volume <= high:
            raise InputError(
                f"policy.volume_range is [{low:g}, {high:g}] and policy.volume {self.volume:g}; the volume must lie in "
                "the range, whose ends are positive, the smaller first."
            )
        return self


class Learned(Section):
    """How rewards are learned, and which version of each is used; see docs/rewards.md."""

    days: float = Field(7, gt=0)
    """Length of the stretches of a user's log that are compared."""
    versions: dict[str, int] = Field(default_factory=dict)
    """Of each learned reward the version that is used; the newest where it is not named."""
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    """How a network learns from preferences."""
    loop: LoopConfig = Field(default_factory=LoopConfig)
    """How `tactful rewards loop` goes on from round to round."""
    preference: PreferenceConfig = PreferenceConfig()
    """How weights are learned from answers."""
    goal: GoalConfig = GoalConfig()
    """What `tactful rewards goal` learns."""
    judge: JudgeConfig | None = None
    """A language model that answers as a rater; absent where none is asked."""


class Score(Section):
    """Nightly scoring."""

    valid_hours: float = Field(24, gt=0)
    """A scored row is good for this long after its decide_at."""
    new_users: Literal["model", "fallback"] = "model"
    """Who decides for a user of whom nothing is known within the lookback."""
    fallback: str = HOLD
    """What stands in where the model cannot judge: an action, or `logging`, the behaviour network's probabilities.
    Where that action is not legal, or nothing can be known of the candidate, the first action does."""
    sends_at_most: float | None = Field(None, ge=0)
    """Tonight's quota: so many sends in expectation."""
    share_at_most: float | None = Field(None, ge=0, le=1)
    """The same as a share of tonight's candidates."""
    over_budget: Literal["refuse", "nearest"] = "refuse"
    """What to do where even the highest price that was gated sends more: score nothing, or at that price."""

    @model_validator(mode="after")
    def one_quota(self) -> Self:
        if self.sends_at_most is not None and self.share_at_most is not None:
            raise InputError("score.sends_at_most and score.share_at_most are both given; leave one out.")
        return self


Levels = tuple[float, float]
"""A share of rows above which there is a warning, and one above which the night is critical."""


class Monitor(Section):
    """When what was scored, logged and earned is an alarm; see docs/monitor.md."""

    match: str = "decision_id"
    """The column of the log that holds the candidate_id a decision answers."""
    window_nights: int = Field(28, ge=1)
    """Nights up to the monitored one whose earnings and action rates are looked at: four whole weeks."""
    min_days: float = Field(7, ge=0)
    """Days that earnings must span to be held against the prediction: a weekday and a weekend earn differently."""
    false_alarm: float = Field(0.001, gt=0, lt=0.5)
    """Chance that a family of tests warns on a night on which nothing is wrong: once in three years."""
    critical_alarm: float = Field(1e-6, gt=0, lt=0.5)
    """The same where somebody is woken."""
    rate_margin: float = Field(0.02, ge=0)
    """Share of an expected rate by which the realised one may differ whatever the noise: of millions all is
    significant."""
    psi: Levels = (0.1, 0.25)
    """Population stability index beyond noise: the usual marks of a moderate and of a large shift."""
    psi_values: Levels = (0.25, 1.0)
    """The same of the model's values, which move with whatever the policy's own sends move in the state; where an input
    is broken they move further."""
    reference_rows: int = Field(200_000, ge=1)
    """Training rows that drift is measured against, in whole buckets of users: deciles of as many are exact to 0.1
    point."""
    unlogged: Levels = (0.02, 0.2)
    """Of scored rows that could have been: never logged, or logged outside their validity or under another user."""
    otherwise: Levels = (0.001, 0.02)
    """Of matched rows: another action than the scored one."""
    repeated: Levels = (0.001, 0.01)
    """Of matched rows: decided again. Users see those."""
    propensity: Levels = (0.001, 0.02)
    """Of matched rows: the logged propensity is missing or not the scored one. Evaluation rests on it."""
    unscored: Levels = (0.05, 1.0)
    """Of logged decisions in the night's time: no night scored them. An experiment's control arm is among them."""
    fallback: Levels = (0.02, 0.5)
    """Of scored rows: the model could not judge them."""
    stale_days: float = Field(45, gt=0)
    """Days since the newest decision that the model learned from: a monthly training that failed once."""

    @model_validator(mode="after")
    def ordered(self) -> Self:
        for name in ("psi", "psi_values", "unlogged", "otherwise", "repeated", "propensity", "unscored", "fallback"):
            warning, critical = getattr(self, name)
            if not 0 <= warning <= critical:
                raise InputError(
                    f"monitor.{name} is [{warning:g}, {critical:g}]; two shares are needed, the warning first and none "
                    "below 0."
                )
        if self.critical_alarm > self.false_alarm:
            raise InputError(
                f"monitor.critical_alarm is {self.critical_alarm:g}, above monitor.false_alarm {self.false_alarm:g}; "
                "what wakes somebody must be rarer than a warning."
            )
        return self


class Retention(Section):
    """What `tactful vacuum` keeps of every table."""

    versions: int = Field(10, ge=1)
    """The newest versions that stay readable, beside those a model was learned from."""
    orphan_hours: float = Field(24, ge=0)
    """A file that no commit names goes once it is older: longer than any job runs."""


class MlflowConfig(Section):
    """Where runs and versions are kept."""

    tracking_uri: str | None = None
    """By default a SQLite file in the run's folder."""
    experiment: str = "tactful"
    model: str = "tactful"
    """Registered model name."""

    @field_validator("model")
    @classmethod
    def searchable(cls, name: str) -> str:
        """MLflow looks a model up by a text in a language of its own, where a quote in a name would end it."""
        if not MODEL_NAME.fullmatch(name):
            raise InputError(
                f"mlflow.model is {name!r}; give it letters, digits, spaces, and the signs . - _ alone: MLflow's "
                "search cannot quote others."
            )
        return name


class SparkConfig(Section):
    """The session."""

    master: str = "local[*]"
    shuffle_partitions: int = Field(4, ge=1)
    conf: dict[str, str] = Field(default_factory=dict)
