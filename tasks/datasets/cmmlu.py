"""CMMLU: multiple-choice questions in Chinese of 67 subjects, as they are published or as the hub has them.

Source: Li et al., 2023, arXiv:2306.09212. The forms are told apart by tasks/datasets/questions.py.
"""

from tasks.datasets.questions import KIND, NEEDS, SCHEMA, expectations, fetch, left_out, read

__all__ = ["KIND", "NEEDS", "SCHEMA", "expectations", "fetch", "left_out", "read"]
