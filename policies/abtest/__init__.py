"""Planning and reading the online experiment; the unit of inference is the user."""
