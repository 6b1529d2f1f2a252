"""What 128 learned policies are truly worth, how well that can be told from a log, and what the gate lets through."""
