"""Measurements of models on this machine, and what they say about a cell. No network."""
