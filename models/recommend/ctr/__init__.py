"""Click-through rate: one row of ids and numbers -> the chance of a click."""
