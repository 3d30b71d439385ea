"""Policies learned from logged choices, their propensities and rewards."""
