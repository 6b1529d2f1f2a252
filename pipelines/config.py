"""One TOML file, validated; every error names the key, what was found and the remedy."""

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.contract import HOLD, UNITS, Contract
from models.errors import InputError
from models.rewards.judge.settings import JudgeConfig
from models.rewards.preference_config import PreferenceConfig
from models.rewards.settings import LoopConfig, NetworkConfig
from models.rewards.success import GoalConfig
from models.sweep import SweepConfig
from models.training import TrainConfig
from pipelines.etl.schemas import COLUMN_REWARD
from policies.abtest.config import AbtestConfig
from policies.baselines import NAMES, Always, LoggingPolicy, Never
from policies.constraints import Constraints
from policies.ope.intervals import one_sided
from policies.ope.mis import MOST_BINS
from policies.propensity import PropensityConfig
from policies.rowset import EvaluateConfig
from policies.rules import GateConfig
from policies.simulator import SimulatorConfig

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


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change."""

    # What is written down again (a record in MLflow, a copy with a change) has the keys of the file.
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class Dataset(Section):
    """Where one raw dataset lies and how its columns are called there."""

    path: Path
    """A Parquet folder or file, or a CSV file; a relative path is relative to the working directory."""
    format: Literal["parquet", "csv"] | None = None
    """By the suffix where absent (.csv and .csv.gz are CSV, all else Parquet)."""
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


class Config(Section):
    """Everything one run needs to know."""

    name: str
    seed: int = 0
    run_dir: Path
    """Everything a run writes lies here: lake, transitions, MLflow, report."""
    actions: list[str] = Field(default_factory=lambda: [HOLD, "send"])
    rewards: list[str]
    """Reward components: sends, clicks, visits, weekly_active_days, disables, column:NAME of the decision row, or
    learned:NAME, a reward that was learned (`tactful rewards`)."""
    units: dict[str, str] = Field(default_factory=dict)
    """Raw unit of a column:NAME component."""
    simulate: SimulatorConfig | None = None
    data: Data
    features: Features
    constraints: Constraints = Constraints()
    etl: Etl = Etl()
    quality: Quality = Quality()
    propensity: PropensityConfig = PropensityConfig()
    train: TrainConfig | None = None
    """Absent where policies are evaluated and none is learned."""
    sweep: SweepConfig | None = None
    learned: Learned = Learned()
    policy: Policy = Policy()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    abtest: AbtestConfig | None = None
    score: Score = Score()
    monitor: Monitor = Monitor()
    retention: Retention = Retention()
    mlflow: MlflowConfig = MlflowConfig()
    spark: SparkConfig = SparkConfig()

    @model_validator(mode="after")
    def consistent(self) -> Self:
        for component in self.rewards:
            if not component.startswith((COLUMN_REWARD, LEARNED_REWARD)) and component not in UNITS:
                raise InputError(
                    f"rewards: {component!r} is not a component{suggest(component, UNITS)}; a column of the decision "
                    f"row is written {COLUMN_REWARD}{component}, a learned reward {LEARNED_REWARD}{component}."
                )
            if component in UNITS and component != "sends" and self.data.events is None:
                raise InputError(f"rewards: {component!r} is counted from events; map data.events or remove it.")
        if self.rewards and not self.logged_rewards:
            raise InputError(f"rewards: {', '.join(self.rewards)} are learned; name one that the log has too.")
        names = self.contract.rewards
        named: list[tuple[str, Iterable[str]]] = [
            ("train.weights", self.train.weights if self.train else ()),
            ("gate.return_weights", self.gate.return_weights),
            ("gate.metrics", self.gate.metrics),
            ("evaluate.most_per_decision", self.evaluate.most_per_decision),
        ]
        if self.sweep is not None:
            shape = "sweep.grid" if self.sweep.simplex is None else "sweep.simplex.components"
            named += [(shape, self.sweep.components), ("sweep.objectives", self.sweep.objectives)]
        if self.abtest is not None:
            named.append(("abtest.metrics", self.abtest.metrics))
        for key, found in named:
            known = (*names, "ctr") if key.endswith(".metrics") else names
            for name in found:
                if name not in known:
                    raise InputError(f"{key}: {name!r} is not a reward component{suggest(name, known)}.")
        for name, policy in self.evaluate.policies.items():
            context = (*self.features.context, *self.features.context_categories)
            policy.check(f"evaluate.policies.{name}", self.actions, context)
        self._consistent_evaluation()
        self._consistent_score()
        if self.train is not None:
            self._consistent_learning(self.train)
        if self.sweep is not None:
            # A sweep that cannot be is told before anything is learned; learned weights are not read before then.
            train = self.learning
            if train.weights_from is not None:
                train = replace(train, weights=dict.fromkeys(names, 1.0), weights_from=None)
            self.sweep.population(train, self.gate.candidate)
            self.sweep.front(names)
        return self

    def _consistent_evaluation(self) -> None:
        settings, gate, features = self.evaluate, self.gate, self.features.names
        for key, found in (("gate.segments", gate.segments), ("evaluate.marginal", settings.marginal or ())):
            for name in found:
                if name not in features:
                    raise InputError(f"{key}: {name!r} is not a state feature{suggest(name, features)}.")
        bins = math.prod((settings.marginal or {}).values())
        if bins > MOST_BINS:
            raise InputError(
                f"evaluate.marginal asks for {bins} bins, more than {MOST_BINS}; give fewer features or parts."
            )
        _check_called("evaluate.policies", settings.policies)
        # By itself the candidate is the only try: a gate that could not judge even that one never can.
        one_sided(gate.confidence, 1, settings.resamples)
        wrong = {"ips": "week", "pdis": "decision"}.get(gate.estimator)
        if settings.per == wrong:
            other = "dr, wpdis or ips" if wrong == "decision" else "dr or wpdis"
            raise InputError(
                f"gate.estimator is {gate.estimator!r}, which evaluate.per = {wrong!r} has not; use {other}."
            )
        for key in ("baselines", "baseline_send_rate"):
            given = getattr(settings, key)
            if self.train is None and given not in (None, ()):
                raise InputError(
                    f"evaluate.{key} is {given}, but baselines are fitted beside learned policies and there is no "
                    "[train]; remove it, or add [train]."
                )

    def _consistent_score(self) -> None:
        score, names = self.score, (*self.actions, FALLBACK_LOGGING)
        without_hold = self.actions[0] != HOLD
        if score.fallback not in names and not (without_hold and score.fallback == HOLD):
            raise InputError(f"score.fallback: {score.fallback!r} is not an action{suggest(score.fallback, names)}.")
        for key in ("sends_at_most", "share_at_most"):
            if without_hold and getattr(score, key) is not None:
                raise InputError(f"score.{key}: every action is a send, so there is nothing to choose; remove it.")

    def _consistent_learning(self, train: TrainConfig) -> None:
        for key in ("volume", "lambda"):
            if getattr(self.policy, key if key == "volume" else "lambda_") and self.actions[0] != HOLD:
                raise InputError(
                    f"policy.{key}: every action of {', '.join(self.actions)} is a send, so that no price moves what "
                    f"is sent; remove it, or configure `{HOLD}`."
                )
        if self.gate.candidate not in train.learners:
            meant = suggest(self.gate.candidate, train.learners)
            raise InputError(f"gate.candidate: {self.gate.candidate!r} is not learned{meant}.")
        usual = () if self.evaluate.policies else (Never().name, Always().name)
        _check_called("train.learners", train.learners, usual)
        for name in self.evaluate.policies:
            if name in train.learners:
                raise InputError(f"evaluate.policies.{name}: a learner of [train] is called so too; rename it.")

    @property
    def learning(self) -> TrainConfig:
        """[train]. Raises InputError where the configuration has none."""
        if self.train is None:
            raise InputError(
                f"{self.name}: the configuration has no [train], so there is nothing to learn; add one with "
                "train.weights, or go on with `tactful evaluate`."
            )
        return self.train

    @property
    def contract(self) -> Contract:
        """Actions, features and rewards by name; a column:NAME or learned:NAME component is called NAME."""
        return self._contract(self.rewards)

    @property
    def logged_contract(self) -> Contract:
        """The same without learned rewards: what the ETL makes and the transitions table holds."""
        return self._contract(self.logged_rewards)

    def _contract(self, rewards: Iterable[str]) -> Contract:
        names = tuple(each.removeprefix(COLUMN_REWARD).removeprefix(LEARNED_REWARD) for each in rewards)
        units = {**{n: UNITS[n] for n in names if n in UNITS}, **self.units}
        return Contract(tuple(self.actions), self.features.names, names, units)

    @property
    def logged_rewards(self) -> list[str]:
        """The components of `rewards` that the ETL makes."""
        return [each for each in self.rewards if not each.startswith(LEARNED_REWARD)]

    @property
    def learned_names(self) -> tuple[str, ...]:
        """The learned rewards among the components."""
        return tuple(each.removeprefix(LEARNED_REWARD) for each in self.rewards if each.startswith(LEARNED_REWARD))

    @property
    def transitions_path(self) -> Path:
        return self.run_dir / "transitions"

    @property
    def propensities_path(self) -> Path:
        return self.run_dir / "propensities"

    @property
    def rewards_path(self) -> Path:
        """Folder of the learned rewards, see models/rewards/store.py."""
        return self.run_dir / "rewards"

    def digest(self) -> str:
        """Fingerprint of every key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def etl_hash(self) -> str:
        """Fingerprint of everything that decides what a transition is."""
        parts = self.model_dump(mode="json", include={"actions", "data", "features", "constraints", "etl"})
        parts["rewards"] = self.logged_rewards
        for key in ("as_of", "watermark", "known_gaps", "max_quarantined"):
            parts["etl"].pop(key)
        # Where a dataset lies, and what could be sent tonight, decide no transition.
        parts["data"].pop("candidates")
        for dataset in parts["data"].values():
            if dataset:
                dataset.pop("path")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _check_called(key: str, names: Iterable[str], usual: tuple[str, ...] = ()) -> None:
    taken = (LoggingPolicy().name, *NAMES, *usual)
    for name in names:
        if name in taken:
            raise InputError(f"{key}.{name}: another policy is called so ({', '.join(taken)}); rename it.")


def suggest(name: str, known: Any) -> str:
    """`; did you mean X? Known: ...` for an error message."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(known)})"


def load(path: Path, overrides: dict[str, str] | None = None) -> Config:
    """Read and validate a TOML file; `overrides` maps dotted keys to values, each parsed as TOML or taken as text.

    Raises InputError naming the file or key, what was found and the remedy.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file; see configs/ for examples.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}.") from None
    for key, text in (overrides or {}).items():
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {key}: {parent!r} is a value, not a section; correct the key.")
        try:
            node[leaf] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            node[leaf] = text
    return validate(tree, str(path))


def validate(tree: dict[str, Any], source: str) -> Config:
    """A Config from a parsed tree; every problem found is named with its key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(_explain(problem, source) for problem in error.errors())) from None


def _explain(problem: Any, source: str) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        meant = suggest(key.split(".")[-1], _siblings(problem["loc"]))
        return f"{source}: {key}: no such key; correct the spelling or remove it{meant}."
    if problem["type"] in {"missing", "missing_argument"}:
        return f"{source}: {key}: missing; add it."
    return f"{source}: {key}: found {problem['input']!r}: {problem['msg']}."


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that exist where a misspelt one was found."""
    section: Any = Config
    for part in location[:-1]:
        found = _fields(section).get(str(part))
        options = [found, *getattr(found, "__args__", ())]
        section = next((option for option in options if _fields(option)), None)
    return list(_fields(section))


def _fields(section: Any) -> dict[str, Any]:
    """Name -> type of each field of a section or of a config dataclass; empty for anything else."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    if is_dataclass(section):
        return {field.name: field.type for field in fields(section)}
    return {}
