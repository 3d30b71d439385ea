"""Retrieval from implicit feedback: a user's items among all items."""
