"""Teachers that write: each file is one published way in which a teacher's texts, not its logits, reach a student."""
