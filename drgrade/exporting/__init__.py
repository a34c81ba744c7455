"""Export of a trained run as one file that runs without drgrade: ``drgrade export``."""
