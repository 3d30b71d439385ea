"""Reorder the candidates of a request: good, and not repetitive."""
