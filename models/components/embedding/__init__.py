"""The parts of an embedding, one file each: their sum is what the encoder reads."""
