"""Training and testing of one run; :func:`drgrade.training.run.train` is the entry point."""
