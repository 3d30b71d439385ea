"""Kinds of recommenders between ingested data and models/recommend/<kind>/: one file each."""
