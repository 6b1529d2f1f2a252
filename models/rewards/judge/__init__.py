"""Preferences by a language model behind an OpenAI-compatible endpoint, and how far they can be trusted."""
