"""Targets, one file each: heads and losses on hidden states."""
