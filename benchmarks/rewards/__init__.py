"""What learned rewards are worth, held against a truth that no learner sees."""
