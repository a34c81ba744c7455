"""Synthetic fundus photographs for the demo data set."""
