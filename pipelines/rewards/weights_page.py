"""The page of weights learned from preferences, in the dress of the rollout report: one file that loads nothing."""

from collections.abc import Mapping
from typing import Any

from models.errors import InputError
from models.rewards import store
from pipelines.config import Config
from pipelines.jobs.steps import console
from pipelines.report import environment
from pipelines.report import svg as pictures
from pipelines.report.text import MISSING, Range, fixed, metric_name, moment, percent, plain, short
from pipelines.rewards.fitting_network import shown as network_shown
from pipelines.rewards.judged_shown import version_shown
from pipelines.rewards.weights_shown import ratio_texts, shown, weight_of

View = dict[str, Any]


def run_report(config: Config, name: str, version: int | None) -> None:
    """Print what version `version` of `name` is (that of learned.versions, else the newest), and write its page.

    A network has no page: what is known of it is printed. Raises InputError as `store.read` does, and where it is
    neither weights nor a network.
    """
    stored = store.read(config.rewards_path, name, version or config.learned.versions.get(name))
    if stored.kind == "network":
        for told in network_shown(stored):
            console.print(told, highlight=False, soft_wrap=True)
        return
    if stored.kind != "weights":
        raise InputError(f"{name} version {stored.version} is of kind {stored.kind}; this report is of weights.")
    title = f"{name} version {stored.version}"
    if "judge" in stored.facts:
        # Learned by another likelihood: nothing was held out, and there is one rater.
        for each in version_shown(stored.facts, title):
            console.print(each)
        return
    path = config.run_dir / f"rewards_{name}.html"
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(render(stored.facts, title), encoding="utf-8")
    unfinished.replace(path)
    for each in shown(stored.facts, title):
        console.print(each)
    console.print(f"[bold]{path}[/]")


def render(facts: Mapping[str, Any], title: str) -> str:
    """The facts of `learned_facts` as one HTML page."""
    tone, word, sentence = _verdict(facts)
    found = facts["held_out"]
    weights, axis = _weights(facts)
    page: View = {
        "name": title,
        "created_at": moment(facts["created_at"]),
        "tone": tone,
        "word": word,
        "sentence": sentence,
        "accuracy": _accuracy(found, facts["confidence"]),
        "held_out": None if found is None else _held_out(found),
        "not_learned": facts["not_learned"],
        "unit": metric_name(facts["unit"]).lower(),
        "interval": f"{percent(facts['confidence'])} interval",
        "trade_offs": _trade_offs(facts),
        "weights": weights,
        "axis": axis,
        "calibration": None if found is None else _calibration(found),
        "tie": _tie(facts["noise"]["tie"]),
        "raters": [_rater(each) for each in facts["raters"]],
        "together": [_together(each) for each in facts["together"]],
        "splits": [{**each, "probability": percent(each["probability"])} for each in facts["splits"]],
        "splits_all": plain(facts["counts"]["splits"]),
        "lineage": _lineage(facts),
    }
    return environment().get_template("weights.html.j2").render(**page)


def _verdict(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    found, counts = facts["held_out"], facts["counts"]
    said = (
        f"{plain(counts['pairs'])} pairs and {plain(counts['rankings'])} rankings by {plain(counts['raters'])} raters"
    )
    if found is None:
        return "open", "Untested", f"{said}; none could be held out, so that nothing says how well the weights predict."
    if found["gain_interval"][0] > 0:
        return "good", "Predicts", f"{said}; held-out answers are predicted better than by the side alone."
    return "open", "Unproven", f"{said}; held-out answers are not shown to be predicted better than by the side alone."


def _accuracy(found: Mapping[str, Any] | None, confidence: float) -> tuple[str, str]:
    if found is None:
        return MISSING, "nothing was held out"
    low, high = found["accuracy_interval"]
    return percent(found["accuracy"]), f"{percent(low)} to {percent(high)} ({percent(confidence)} interval)"


def _held_out(found: Mapping[str, Any]) -> View:
    low, high = found["gain_interval"]
    gain = f"the weights gain {percent(low, 1, sign=True)} to {percent(high, 1, sign=True)} over it"
    rows = [
        ("The weights", (percent(found["accuracy"], 1), ""), found["log_loss"]),
        ("The side alone", (percent(found["accuracy_by_side"], 1), gain), found["log_loss_by_side"]),
        ("Chance", ("50.0%", ""), 0.6931),
    ]
    return {
        "rows": [{"name": name, "right": right, "loss": fixed(loss, 3)} for name, right, loss in rows],
        "how": f"{plain(found['comparisons'])} decided comparisons of {plain(found['pairs_of_weeks'])} separate groups "
        f"of user-weeks in {found['folds']} parts, each held out once. Intervals resample the groups.",
    }


def _trade_offs(facts: Mapping[str, Any]) -> list[View]:
    return [
        {"name": metric_name(name), "measure": facts["units"][name], "texts": ratio_texts(facts, name)}
        for name in facts["rewards"]
        if name != facts["unit"]
    ]


def _weights(facts: Mapping[str, Any]) -> tuple[list[View], Any]:
    found = {name: weight_of(facts, name) for name in facts["rewards"]}
    scaled = {name: each.scaled(facts["scale"][name]) for name, each in found.items()}
    ends = [end for each in scaled.values() for end in (each.value, each.low, each.high) if end is not None]
    scale = pictures.Scale(*pictures.domain(ends))
    rows = [
        {
            "name": metric_name(name),
            "raw": found[name].texts(sign=True),
            "scaled": each.texts(sign=True),
            "typical": f"{short(facts['scale'][name])} {facts['units'][name]}".strip(),
            "bar": pictures.interval_bar(each, scale, f"{metric_name(name)}: weight", _tone(each)),
        }
        for name, each in scaled.items()
    ]
    return rows, pictures.axis(scale, short, "log odds of being preferred")


def _tone(found: Range) -> str:
    return "ink" if found.excludes_zero else "unclear"


def _calibration(found: Mapping[str, Any]) -> View:
    bins = [(said, seen, float(n)) for said, seen, n in found["calibration"]]
    names = ("predicted probability of left", "share that chose left", "comparisons")
    return {
        "error": fixed(found["calibration_error"], 3),
        "picture": pictures.calibration(bins, "Predicted and observed", names),
        "rows": [(percent(said, 1), percent(seen, 1), plain(n)) for said, seen, n in bins],
    }


def _tie(nu: float) -> str:
    return f"Between equals a tie has the odds {fixed(nu, 2)} to 1 against either side." if nu else ""


def _rater(found: Mapping[str, Any]) -> View:
    low, high = found["side_interval"] or (None, None)
    flag = "one key" if found["one_sided"] else f"favours {found['favours']}" if found["favours"] else ""
    return {
        "name": found["name"],
        "flag": flag,
        "pairs": plain(found["pairs"]),
        "rankings": plain(found["answers"] - found["pairs"]),
        "sides": f"{found['left']} / {found['ties']} / {found['right']}",
        "reliability": fixed(found["reliability"], 2),
        "side": Range(found["side"] if found["side_interval"] else None, low, high).texts(sign=True),
        "agreement": percent(found["agreement"], 1),
        "contradictions": plain(found["contradictions"]),
    }


def _together(found: Mapping[str, Any]) -> View:
    return {
        "names": f"{found['first']} and {found['second']}",
        "pairs": plain(found["pairs"]),
        "agreement": percent(found["agreement"], 1),
        "kappa": MISSING if found["kappa"] is None else fixed(found["kappa"], 2),
    }


def _lineage(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = facts["counts"]
    return [
        ("Answers", facts["answers"]),
        ("Transitions table version", plain(facts["data_version"])),
        ("Data fingerprint", facts["fingerprint"]),
        ("Length of a stretch", f"{short(facts['days'])} days"),
        ("User-weeks compared", f"{plain(counts['weeks'])} of {plain(counts['weeks_of_log'])}"),
        ("Side bias is shrunk by", f"standard deviation {short(facts['settings']['side_sd'])} of its log odds"),
        (
            "Reliability is shrunk by",
            f"standard deviation {short(facts['settings']['reliability_sd'])} of its logarithm",
        ),
        ("Seed of the parts held out", plain(facts["seed"])),
    ]
