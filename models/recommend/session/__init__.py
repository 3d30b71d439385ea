"""Sessions: the items so far -> the next one, the next few, or whether it ends in a purchase."""
