"""On-policy mean: the logging policy's own value."""

from policies.ope.sample import Sample
from policies.ope.summaries import Additive


def on_policy(sample: Sample) -> Additive:
    """Sums [U, K] of sum_k r_k, in raw units: unbiased for the policy that wrote the log, pi = mu."""
    return Additive(sample.per_user(sample.reward))
