"""Grading of photographs with a trained model: ``drgrade predict``."""
