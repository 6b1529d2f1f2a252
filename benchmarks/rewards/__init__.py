"""What learned rewards are worth, against a utility that is hidden from the learner: `make study-rewards`."""
