"""MMLU: multiple-choice questions in English of 57 subjects, as they are published or as the hub has them.

Source: Hendrycks et al., 2021, arXiv:2009.03300. The forms are told apart by tasks/datasets/questions.py.
"""

from tasks.datasets.questions import KIND, NEEDS, SCHEMA, expectations, fetch, left_out, read

__all__ = ["KIND", "NEEDS", "SCHEMA", "expectations", "fetch", "left_out", "read"]
