"""What acts, and how well."""
