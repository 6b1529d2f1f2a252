"""Rewards that are learned: from preferences of people, from goals, and from a judge."""
