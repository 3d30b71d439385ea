"""Decoders, one file each: they read their own past and the memory that the encoder left."""
