"""The folder of a run: its files, and the settings that identify a run."""
