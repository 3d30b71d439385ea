"""Encoders, one file each: hidden states and rows in, hidden states out."""
