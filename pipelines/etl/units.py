"""In what each state feature is counted, for the people who read a contract.json."""

from pipelines.etl.features import FeatureNames

BUILT_IN = {
    **dict.fromkeys(("notifications_on", "send_never", "visit_never", "candidate_missing"), "0 or 1"),
    **dict.fromkeys(("sends_24h", "sends_7d", "badge"), "notifications"),
    **dict.fromkeys(("clicks_24h", "clicks_7d"), "clicks"),
    **dict.fromkeys(("visits_24h", "visits_7d"), "sessions"),
    **dict.fromkeys(("hours_since_send", "hours_since_visit"), "hours"),
    "click_rate_28d": "clicks per notification",
    **dict.fromkeys(("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"), "-1 to 1"),
}


def feature_units(features: FeatureNames) -> dict[str, str]:
    """Unit of every state feature, in the order of the state; of a column of the log's, that column's."""
    found = {name: BUILT_IN[name] for name in features.state}
    for columns, categories in (
        (features.context, features.context_categories),
        (features.attributes, features.attribute_categories),
    ):
        found |= {name: f"as in the column {name}" for name in columns}
        found |= {f"{name}={value}": "0 or 1" for name, values in categories.items() for value in values}
    return found
