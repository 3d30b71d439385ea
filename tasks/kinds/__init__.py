"""The kinds of fine-tuning, one file each: how a labelled row becomes a batch, and an output an answer with a score."""
