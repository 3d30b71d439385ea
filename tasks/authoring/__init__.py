"""Authoring for a shop: instructions and answers from a catalogue, tuning on them, and what the texts are worth."""
