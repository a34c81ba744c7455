"""Reports of runs: tables, figures, HTML page and W&B dashboard."""
