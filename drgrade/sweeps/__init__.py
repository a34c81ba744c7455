"""Sweeps: many runs from one command, on this machine, SLURM or Ray."""
