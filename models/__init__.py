"""What is learned, and from what shape of data."""
