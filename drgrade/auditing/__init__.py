"""Checks of a data set before a model is trained on it."""
