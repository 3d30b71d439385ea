"""Candidate generation: a tower for users, a tower for items, and a product of their vectors."""
