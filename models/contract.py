"""Actions, state features and reward components, and the columns that carry them from the ETL to the learner.

The transitions table has one row per decision k of user u. Its columns:

| column                 | type             | meaning |
|------------------------|------------------|---------|
| user_id, decision_id   | string           | whose decision, which |
| decided_at             | timestamp (us)   | t_k, UTC |
| ds                     | string           | UTC date of t_k, partition |
| bucket                 | int              | xxhash64(user_id) mod B, partition |
| split                  | string           | train, validation or test |
| action                 | string, nullable | null only where usable is false |
| legal                  | array<boolean>   | [A], in the order of the actions: logged legal and configured limits |
| propensity             | double, nullable | mu(a_k | s_k) |
| propensity_source      | string, nullable | logged, estimated or certain |
| policy_id              | string, nullable | which policy or arm decided |
| state_<feature>        | float, nullable  | [S] columns; null is imputed with the training mean inside the network |
| reward_<component>     | double, nullable | [K] columns; null only where usable is false |
| elapsed_days           | double           | Delta_k = e_k - t_k in days of 86,400 s |
| terminal               | boolean          | the account closed in (t_k, e_k]: bootstraps nothing |
| truncated              | boolean          | the watermark or an unusable row ended the interval: no TD target |
| silent, warm_up, usable| boolean          | added where none was decided; too early to train; trains and evaluates |
| clicks_attributed      | int, nullable    | clicks on this notification within the window; null while it is open |
| reason                 | string, nullable | why the row is unusable |
"""

from dataclasses import dataclass, field

from models.errors import InputError

STATE_PREFIX = "state_"
REWARD_PREFIX = "reward_"
HOLD = "hold"
SPLITS = ("train", "validation", "test")
MOST_ACTIONS = 256
"""Learners keep the logged action in a byte; a further one would be taken for the first."""

UNITS = {
    "sends": "notifications",
    "clicks": "clicks",
    "visits": "sessions",
    "weekly_active_days": "days",
    "disables": "users switching off",
}
"""Raw unit of each built-in reward component; a `column:NAME` component is in the unit of its column."""


@dataclass(frozen=True)
class Contract:
    """What a log, a learner and a policy must agree on: A actions, S state features, K reward components."""

    actions: tuple[str, ...]
    """A action names; the first is `hold` (send nothing) where there is one."""
    features: tuple[str, ...]
    """S state feature names, in the order of the network's input."""
    rewards: tuple[str, ...]
    """K reward component names, in the order of the network's heads."""
    units: dict[str, str] = field(default_factory=dict)
    """Raw unit per reward component."""

    def __post_init__(self) -> None:
        for what, names in (("actions", self.actions), ("features", self.features), ("rewards", self.rewards)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise InputError(f"{what}: {', '.join(repeated)} is named more than once; name each once.")
        if len(self.actions) < 2:
            raise InputError(f"actions: {len(self.actions)} configured; a decision needs two or more.")
        if len(self.actions) > MOST_ACTIONS:
            raise InputError(
                f"actions: {len(self.actions)} configured; {MOST_ACTIONS} are possible at most, join some."
            )
        if HOLD in self.actions[1:]:
            raise InputError("actions: `hold` must be the first action; move it to the front.")
        if not self.features:
            raise InputError("features: none configured; name at least one state feature.")
        if not self.rewards:
            raise InputError("rewards: none configured; name at least one reward component.")

    @property
    def is_send(self) -> tuple[bool, ...]:
        """[A] whether an action reaches the user: every action but `hold`."""
        return tuple(action != HOLD for action in self.actions)
