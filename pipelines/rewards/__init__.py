"""Learning rewards from a log: the commands `tactful rewards ...` and what they read and write."""
