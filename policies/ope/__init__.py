"""Off-policy evaluation: estimators, fitted Q evaluation, intervals, diagnostics."""
