"""Propensities for logs that lack them: a calibrated model of the logging policy; and how well propensities fit a log.

The model is histogram gradient boosting (it reads NaN as it is, and finds the thresholds and interactions that logging
rules are made of), its scores mapped to probabilities by `CalibratedClassifierCV` on users it was not grown on. An
estimate knows only the state: whatever else drove the choice stays hidden, and so does its effect on what was earned.
"""

from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.contract import SPLITS
from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.ope.diagnostics import BINS, Calibration
from policies.shuffle import shuffled

HELD_OUT = -1
"""The fold of users outside the training split."""
ISOTONIC_LEAST = 1000
"""Calibration rows an action needs for isotonic regression; below, scikit-learn advises a sigmoid."""
PATIENCE = 10
"""Trees without a lower loss on other users after which no more are grown."""
SHRINKAGE = 0.05
LEAVES = 8
"""Of a tree, few: rules of who is sent what join few conditions, and more leaves mostly fit the draws."""


@dataclass(frozen=True)
class PropensityConfig:
    """How unknown propensities are estimated."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    folds: int = 5
    """Folds of training users: each model is grown on all but two of them and calibrated on one of the two; the other
    is where it estimates."""
    trees: int = 400
    """Most trees a model has; it stops earlier where more do not help on the users it is calibrated on."""
    floor: float = 0.01
    """Least probability of a legal action: no estimate makes a weight above 1 / floor."""

    def __post_init__(self) -> None:
        if self.folds < 3:
            raise InputError(f"propensity.folds is {self.folds}; 3 or more are needed: to grow, to calibrate, to use.")
        if self.trees < 1:
            raise InputError(f"propensity.trees is {self.trees}; it must be 1 or more.")
        if not 0 < self.floor < 0.5:
            raise InputError(f"propensity.floor is {self.floor}; it must lie in (0, 0.5).")


@dataclass(frozen=True)
class Estimates:
    """Estimates for the n decisions of a table whose propensity was unknown; A actions."""

    rows: Integers
    """[n] their places in the table."""
    probability: Floats
    """[n, A] mu(a | s_k), 0 where illegal, rows sum to 1."""
    propensity: Floats
    """[n] mu(a_k | s_k) of the logged action."""
    fold: NDArray[np.int8]
    """[n] the training user's fold, whose model never saw it, or HELD_OUT."""
    floored: int
    """How many propensities were below the floor and are now at it."""
    share: Floats
    """[A] how often each action was taken where the models were fitted: the base rate."""


def estimate(table: Transitions, config: PropensityConfig, seed: int) -> Estimates:
    """Cross-fitted, calibrated mu(a_k | s_k) of every decision whose propensity is NaN; deterministic, one thread.

    Training users are dealt into `folds` by a hash of id and seed. Model f is grown on all folds but f and f + 1,
    stopped and calibrated on f + 1 (isotonic, or a sigmoid where an action is rare), and estimates for f; users of the
    other splits get the mean of all models. It is fitted on decisions without a propensity that had a choice, took a
    legal action, and lie outside the warm-up. Its input is the state and which actions are legal; its output is held to
    the legal actions (and the logged one, where only a configured constraint forbids it), renormalised, and kept at
    or above `floor`, what that takes being taken from the other actions.

    Raises InputError where no propensity is unknown, the training split has fewer users with unknown ones than folds,
    only one action was taken in training, an action was not taken in every fold, and the floor is too high for A.
    """
    row = np.flatnonzero(np.isnan(table.propensity))
    if not len(row):
        raise InputError(
            f"propensity: all {len(table.propensity)} decisions have one, nothing is to be estimated; go on with "
            "`tactful train`."
        )
    actions = len(table.contract.actions)
    if config.floor * actions >= 1:
        raise InputError(f"propensity.floor is {config.floor}; with {actions} actions it must be below 1 / {actions}.")
    fold = _folds(table, row, config.folds, seed)
    inputs = np.concatenate([table.state[row], table.legal[row].astype(np.float32)], axis=1)
    action = table.action[row]
    took_legal = table.legal[row, action]
    fits = (fold != HELD_OUT) & (table.legal[row].sum(axis=1) > 1) & took_legal & ~table.warm_up[row]
    _check_actions(action, fold, fits, config.folds, table.contract.actions)
    possible = table.legal[row].copy()
    possible[np.arange(len(row)), action] = True
    total = np.zeros((len(row), actions))
    # Its arithmetic may differ in the last digit with the number of threads.
    with threadpool_limits(limits=1):
        for each in range(config.folds):
            beside = (each + 1) % config.folds
            grown = fits & (fold != each) & (fold != beside)
            held = fits & (fold == beside)
            model = calibrated(grow(inputs, action, grown, held, config.trees, seed), inputs[held], action[held])
            use = (fold == each) | (fold == HELD_OUT)
            if use.any():
                total[np.ix_(use, model.classes_)] += model.predict_proba(inputs[use])
    raw = _renormalised(total, possible)
    probability = _floored(raw, possible, config.floor)
    at = (np.arange(len(row)), action)
    return Estimates(
        rows=row.astype(np.int64),
        probability=probability,
        propensity=probability[at],
        fold=fold.astype(np.int8),
        floored=int((raw[at] < config.floor).sum()),
        share=np.bincount(action[fits], minlength=actions) / fits.sum(),
    )


def describe(table: Transitions, found: Estimates, config: PropensityConfig, seed: int) -> dict[str, Any]:
    """What was estimated, by what, and its calibration on training users (`cross_fitted`) and others (`held_out`).

    `logged` is the calibration of the propensities that the log has, null where it has none. Ready for JSON.
    """
    of = {"cross_fitted": found.fold != HELD_OUT, "held_out": found.fold == HELD_OUT}
    names = table.contract.actions
    legal, action = table.legal[found.rows], table.action[found.rows]
    return {
        "decisions": len(table.action),
        "estimated": len(found.rows),
        "users": len(np.unique(table.user[found.rows])),
        "floored": found.floored,
        "model": {
            "name": "HistGradientBoostingClassifier, calibrated",
            "scikit_learn": package_version("scikit-learn"),
            "folds": config.folds,
            "trees": config.trees,
            "floor": config.floor,
            "seed": seed,
        },
        "calibration": {
            **{
                name: reliability(found.probability[rows], action[rows], legal[rows], found.share, names)
                for name, rows in of.items()
            },
            "logged": logged_calibration(table),
        },
    }


def reliability(
    probability: Floats, action: Integers, legal: Booleans, share: Floats, names: tuple[str, ...]
) -> dict[str, Any] | None:
    """How `probability` [n, A] foretold `action` [n], over the m rows with a choice; None where there is none.

    Per action, over the rows where it is legal, ten bins of probability with mean predicted p_b, observed share o_b and
    n_b; `ece` = sum_b n_b |p_b - o_b| / n, over the actions their mean by rows. `log_loss` = -mean log p(a_k) in nats,
    against `base_log_loss`, that of the base rates `share` [A] renormalised over the legal actions.
    """
    choice = (legal.sum(axis=1) > 1) & legal[np.arange(len(action)), action]
    if not choice.any():
        return None
    probability, action, legal = probability[choice], action[choice], legal[choice]
    at = (np.arange(len(action)), action)
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        rows = legal[:, number]
        if rows.any():
            found[name] = _bins(probability[rows, number], action[rows] == number)
    rows_of = np.array([each["decisions"] for each in found.values()])
    errors = np.array([each["ece"] for each in found.values()])
    base = _renormalised(np.broadcast_to(np.maximum(share, 1e-12), legal.shape), legal)
    return {
        "decisions": len(action),
        "ece": float((errors * rows_of).sum() / rows_of.sum()),
        "log_loss": float(-np.log(probability[at]).mean()),
        "base_log_loss": float(-np.log(base[at]).mean()),
        "actions": found,
    }


def _bins(predicted: Floats, taken: Booleans) -> dict[str, Any]:
    # 0.2 of a send that was made and 1 - 0.8 of one that was not are one probability, and differ in the last digit.
    place = np.minimum(np.floor(predicted * BINS + 1e-9).astype(np.int64), BINS - 1)
    bins = [
        {"predicted": float(predicted[inside].mean()), "observed": float(taken[inside].mean()), "n": int(inside.sum())}
        for inside in (place == each for each in np.unique(place))
    ]
    error = sum(each["n"] * abs(each["predicted"] - each["observed"]) for each in bins) / len(predicted)
    return {"decisions": len(predicted), "ece": float(error), "bins": bins}


def logged_calibration(table: Transitions) -> dict[str, Any] | None:
    """Calibration of the propensities that the log itself has, over its decisions with a choice; None without any.

    `mean_weights`: per action the mean of 1{A = a} / p, 1 where right, with its standard error. `reliability` of two
    actions, where p tells both probabilities; of more the log says only that of the action taken, and it is None.
    """
    row = np.arange(len(table.action))
    known = ~np.isnan(table.propensity) & ~table.estimated & table.legal[row, table.action]
    known &= table.legal.sum(axis=1) > 1
    if not known.any():
        return None
    logged = table.where(known)
    names = table.contract.actions
    found = {"mean_weights": Calibration.of(logged).plain(names)["actions"], "reliability": None}
    if len(names) == 2:
        of_second = np.where(logged.action == 1, logged.propensity, 1 - logged.propensity)
        probability = np.stack([1 - of_second, of_second], axis=1)
        share = np.bincount(logged.action, minlength=2) / len(logged.action)
        found["reliability"] = reliability(probability, logged.action, logged.legal, share, names)
    return found


def _folds(table: Transitions, row: Integers, folds: int, seed: int) -> Integers:
    """[n] fold of each row's user, training users dealt evenly in the order of a hash; HELD_OUT for the others."""
    user = table.user[row]
    training = np.unique(user[table.split[row] == SPLITS.index("train")])
    if len(training) < folds:
        raise InputError(
            f"propensity: {len(training)} users of the training split have decisions without a propensity, "
            f"{folds} folds need as many; use a longer log, raise the training share of etl.split, or lower "
            "propensity.folds."
        )
    of_user = np.full(len(table.user_id), HELD_OUT, dtype=np.int64)
    of_user[training[shuffled(table.user_id[training], seed)]] = np.arange(len(training)) % folds
    found: Integers = of_user[user]
    return found


def _check_actions(action: Integers, fold: Integers, fits: Booleans, folds: int, names: tuple[str, ...]) -> None:
    """Raise InputError where the training rows cannot say how often each action is taken."""
    taken = np.unique(action[fits])
    if len(taken) < 2:
        what = f"only {names[taken[0]]!r} was taken" if len(taken) else "no decision had a choice"
        raise InputError(
            f"propensity: {what} in the {int(fits.sum())} training decisions without a propensity: there is no choice "
            "to model; log decisions in which more than one action was taken."
        )
    for each in taken:
        where = np.unique(fold[fits & (action == each)])
        if len(where) < folds:
            raise InputError(
                f"propensity: {names[each]!r} was taken {int((fits & (action == each)).sum())} times in training, in "
                f"{len(where)} of {folds} folds of users; every fold needs it: lower propensity.folds, use a longer "
                "log, or merge it with another action."
            )


def grow(
    inputs: NDArray[Any],
    label: Integers,
    grown: Booleans,
    beside: Booleans,
    trees: int,
    seed: int,
) -> Any:
    """A HistGradientBoostingClassifier of `label` [n] grown on the rows `grown`, stopped by its loss on `beside`."""
    # A second to import, and every command reads the configuration above.
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=SHRINKAGE,
        max_iter=trees,
        max_leaf_nodes=LEAVES,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        random_state=seed,
    )
    return model.fit(inputs[grown], label[grown], X_val=inputs[beside], y_val=label[beside])


def calibrated(model: Any, inputs: NDArray[Any], label: Integers) -> Any:
    """A CalibratedClassifierCV around the fitted `model`, its map to probabilities fitted on these rows, none of which
    the model saw."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    rarest = np.unique(label, return_counts=True)[1].min()
    method = "isotonic" if rarest >= ISOTONIC_LEAST else "sigmoid"
    every = np.arange(len(label))
    # The model is fitted: nothing is to be split, and by default it would ask for five rows of each class.
    found = CalibratedClassifierCV(FrozenEstimator(model), method=method, cv=[(every, every)], ensemble=False)
    return found.fit(inputs, label)


def _renormalised(weight: Floats, possible: Booleans) -> Floats:
    """[n, A] `weight` over the possible actions, made to sum to 1; uniform where nothing is left."""
    kept = np.where(possible, weight, 0.0)
    total = kept.sum(axis=1, keepdims=True)
    uniform = possible / possible.sum(axis=1, keepdims=True)
    found: Floats = np.divide(kept, total, out=uniform, where=total > 0)
    return found


def _floored(probability: Floats, possible: Booleans, floor: float) -> Floats:
    """[n, A] nearest probabilities, by proportion, of which no possible one is below `floor`."""
    found = probability
    # To lower the others may bring another of them below; after A rounds none is.
    for _ in range(probability.shape[1]):
        low = possible & (found <= floor)
        rest = np.where(low, 0.0, found)
        total = rest.sum(axis=1, keepdims=True)
        scaled = np.divide(rest * (1 - floor * low.sum(axis=1, keepdims=True)), total, out=rest, where=total > 0)
        found = np.where(low, floor, scaled)
    return found
