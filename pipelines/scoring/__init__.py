"""Tonight's candidates, scored by the champion, each night whole or not at all; frozen, and handed to a sender."""
