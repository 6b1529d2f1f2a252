"""Send what is likely to be clicked: the response-prediction policy that notification systems start from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.errors import InputError
from models.table import Transitions
from policies.base import Booleans, Floats, Integers
from policies.baselines.design import LEAST_ROWS, Design, crossed
from policies.baselines.volume import DIGITS, UNTRIED, Cut, check_hold, cut_on_validation, rows_of
from policies.propensity import PropensityConfig, calibrated, grow


@dataclass(frozen=True)
class ClickModel:
    """p(click | state, send action), calibrated."""

    design: Design
    tried: Integers
    """Send actions that training took often enough; the first is the reference."""
    actions: int
    classifier: Any
    """A fitted scikit-learn classifier of 0 and 1."""

    def inputs(self, state: NDArray[Any], action: Integers) -> Floats:
        """[N, D] what the classifier reads of `state` [N, S] and the send `action` [N]."""
        return crossed(self.design(state), action, self.tried[1:])

    def __call__(self, state: NDArray[Any]) -> Floats:
        """[N, A] probability that each send would be clicked within its window; UNTRIED where no model could say."""
        found: Floats = np.full((len(state), self.actions), UNTRIED)
        if len(state):
            for each in self.tried:
                inputs = self.inputs(state, np.full(len(state), each))
                found[:, each] = np.round(self.classifier.predict_proba(inputs)[:, 1], DIGITS)
        return found


@dataclass(frozen=True)
class ClickThreshold:
    """Sends where the most clickable legal notification has p(click | s) above a threshold."""

    model: ClickModel
    cut: Cut
    facts: dict[str, Any]
    name: str = "click_threshold"
    learned: bool = True

    def action_probabilities(self, state: NDArray[np.float32], legal: Booleans) -> Floats:
        """[N, A] one on the legal send of highest p(click) where that is above the threshold, else on `hold`."""
        return self.cut.probabilities(self.model(state), legal)


def fit_click_threshold(table: Transitions, seed: int = 0, send_rate: float | None = None) -> ClickThreshold:
    """A click model of the training sends, and the threshold that meets the log's volume on the validation split.

    The label is whether this notification was clicked within its window; where the table does not say, whether any was
    clicked in the interval of the send (component `clicks`). The model is logistic regression on the standardised
    state (crossed with the action where there are several sends) or boosted trees on the same, whichever has the lower
    log loss on the validation split, calibrated there. By default the threshold makes the policy send as often as the
    log on the validation rows; `send_rate` is a share of the decisions with a choice instead. One thread.

    Raises InputError where the log has no `hold` or no clicks, where a split has too few sends, clicked and not, and as
    `cut_on_validation`.
    """
    check_hold(ClickThreshold.name, table.contract)
    sends = table.action > 0
    fits, held = (rows_of(table, split) & sends for split in ("train", "validation"))
    label, source = _labels(table, fits | held)
    fits, held = (rows & ~np.isnan(label) for rows in (fits, held))
    tried = np.flatnonzero(np.bincount(table.action[fits], minlength=len(table.contract.actions)) >= LEAST_ROWS)
    fits, held = (rows & np.isin(table.action, tried) for rows in (fits, held))
    _check_labels(label, {"training": fits, "validation": held})
    untrained = ClickModel(Design.of(table.state[fits]), tried, len(table.contract.actions), None)
    # The last digit of its arithmetic may depend on the number of threads.
    with threadpool_limits(limits=1):
        classifier, kind, losses = _classifier(untrained, table, label, fits, held, seed)
        model = ClickModel(untrained.design, tried, untrained.actions, classifier)
        cut, rate = cut_on_validation(table, model, ClickThreshold.name, send_rate)
    facts = {
        "model": kind,
        "log_loss": losses,
        "labels": source,
        "sends": int(fits.sum()),
        "clicked": int(label[fits].sum()),
        "threshold": cut.threshold,
        "send_rate": rate,
    }
    return ClickThreshold(model, cut, facts)


def _labels(table: Transitions, sends: Booleans) -> tuple[Floats, str]:
    """[N] 1 where clicked, 0 where not, NaN where that is open, and what says so of the rows `sends`."""
    if table.clicked is not None and not np.isnan(table.clicked[sends]).all():
        return table.clicked, "clicks of the notification"
    if "clicks" not in table.contract.rewards:
        raise InputError(
            f"{ClickThreshold.name}: the log has neither labels of clicks nor the reward component `clicks`; add it to "
            "rewards, or leave the baseline out of evaluate.baselines."
        )
    found: Floats = (table.reward[:, table.contract.rewards.index("clicks")] > 0).astype(np.float64)
    return found, "clicks in the interval of the send"


def _check_labels(label: Floats, splits: dict[str, Booleans]) -> None:
    for split, rows in splits.items():
        clicked = int(label[rows].sum())
        if not 0 < clicked < int(rows.sum()):
            raise InputError(
                f"{ClickThreshold.name}: {clicked} of the {int(rows.sum())} {split} sends with a known outcome were "
                "clicked; a click model needs some that were and some that were not: use a longer log."
            )


def _classifier(
    model: ClickModel, table: Transitions, label: Floats, fits: Booleans, held: Booleans, seed: int
) -> tuple[Any, str, dict[str, float]]:
    """The calibrated classifier of lower log loss on `held`, its kind, and the log loss of every kind before that."""
    # A second to import, and every command reads the configuration, which names the baselines.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rows = fits | held
    inputs, clicked = model.inputs(table.state[rows], table.action[rows]), label[rows].astype(np.int64)
    grown, beside = fits[rows], held[rows]
    fitted = {
        "logistic": LogisticRegression(max_iter=1000).fit(inputs[grown], clicked[grown]),
        "trees": grow(inputs, clicked, grown, beside, PropensityConfig.trees, seed),
    }
    losses = {
        kind: float(log_loss(clicked[beside], each.predict_proba(inputs[beside])[:, 1], labels=[0, 1]))
        for kind, each in fitted.items()
    }
    kind = min(losses, key=lambda each: losses[each])
    return calibrated(fitted[kind], inputs[beside], clicked[beside]), kind, losses
