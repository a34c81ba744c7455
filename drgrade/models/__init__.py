"""Encoders, heads and calibration, in plain torch."""
