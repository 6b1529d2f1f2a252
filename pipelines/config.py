"""One TOML file, validated; every error names the key, what was found and the remedy."""

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from models.contract import HOLD, UNITS, Contract
from models.errors import InputError
from models.rewards.store import check_name
from models.sweep import SweepConfig
from models.training import TrainConfig
from pipelines.etl.schemas import COLUMN_REWARD
from pipelines.sections import (
    FALLBACK_LOGGING,
    LEARNED_REWARD,
    Data,
    Etl,
    Features,
    Learned,
    MlflowConfig,
    Monitor,
    Policy,
    Quality,
    Retention,
    Score,
    Section,
    SparkConfig,
    suggest,
)
from policies.abtest.config import AbtestConfig
from policies.baselines import NAMES, Always, LoggingPolicy, Never
from policies.constraints import Constraints
from policies.hacking import WRITTEN
from policies.ope.intervals import one_sided
from policies.ope.mis import MOST_BINS
from policies.propensity import PropensityConfig
from policies.rowset import EvaluateConfig
from policies.rules import CTR, GateConfig
from policies.simulator import SimulatorConfig


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

    @model_validator(mode="before")
    @classmethod
    def asked_per(cls, tree: Any) -> Any:
        """Without events nothing says what an action changes later: where `evaluate.per` is not given, a policy is then
        judged at one decision."""
        data, settings = (tree.get(key) for key in ("data", "evaluate")) if isinstance(tree, dict) else (None, None)
        if not isinstance(data, dict) or data.get("events") is not None or not isinstance(settings, dict | None):
            return tree
        return {**tree, "evaluate": {"per": "decision", **(settings or {})}}

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
        self._consistent_learned()
        if self.rewards and not self.logged_rewards:
            raise InputError(f"rewards: {', '.join(self.rewards)} are learned; name one that the log has too.")
        names = self.contract.rewards
        named: list[tuple[str, Iterable[str]]] = [
            ("train.weights", self.train.weights if self.train else ()),
            ("gate.return_weights", self.gate.return_weights),
            ("gate.metrics", self.gate.metrics),
            ("evaluate.most_per_decision", self.evaluate.most_per_decision),
        ]
        learners = self.train.named if self.train else {}
        named += [(f"train.learners.{name}.weights", each.weights or ()) for name, each in learners.items()]
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

    def _consistent_learned(self) -> None:
        used = [*self.learned_names, *([self.train.weights_from] if self.train and self.train.weights_from else [])]
        for name in used:
            check_name(name)
        for name in self.learned_names:
            if name in (CTR, WRITTEN):
                raise InputError(f"rewards: 'learned:{name}' is called as what is evaluated beside it; rename it.")
        for name, version in self.learned.versions.items():
            if version < 1:
                raise InputError(f"learned.versions.{name} is {version}; versions count from 1.")
            # Of a reward that is only asked about or reported a pin is fine; a misspelt one would go unnoticed.
            if name not in used and difflib.get_close_matches(name, used, n=1):
                raise InputError(f"learned.versions.{name}: no such reward is used{suggest(name, used)}.")

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
        return hashlib.sha256(json.dumps(self.etl_settings(), sort_keys=True).encode()).hexdigest()[:16]

    def etl_settings(self) -> dict[str, Any]:
        """Everything that decides what a transition is, plain for JSON."""
        parts = self.model_dump(mode="json", include={"actions", "data", "features", "constraints", "etl"})
        parts["rewards"] = self.logged_rewards
        for key in ("as_of", "watermark", "known_gaps", "max_quarantined"):
            parts["etl"].pop(key)
        # Where a dataset lies, what separates its columns, and what could be sent tonight decide no transition.
        parts["data"].pop("candidates")
        for dataset in parts["data"].values():
            if dataset:
                dataset.pop("path")
                dataset.pop("separator")
        return parts


def _check_called(key: str, names: Iterable[str], usual: tuple[str, ...] = ()) -> None:
    taken = (LoggingPolicy().name, *NAMES, *usual)
    for name in names:
        if name in taken:
            raise InputError(f"{key}.{name}: another policy is called so ({', '.join(taken)}); rename it.")


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
