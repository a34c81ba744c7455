"""The folder of a run: its files, their content, and what makes two runs the same."""
