"""Where data comes from and where it goes: the only part that knows Spark."""
