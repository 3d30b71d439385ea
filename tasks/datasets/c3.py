"""C3: multiple-choice questions about dialogues and articles in Chinese; the file whose answers are public is asked.

Source: Sun et al., 2019, arXiv:1904.09679. The forms are told apart by tasks/datasets/questions.py.
"""

from tasks.datasets.questions import KIND, NEEDS, SCHEMA, expectations, fetch, left_out, read

__all__ = ["KIND", "NEEDS", "SCHEMA", "expectations", "fetch", "left_out", "read"]
