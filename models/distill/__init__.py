"""Distillation: each file is one published way for a small model to learn from a large one."""
