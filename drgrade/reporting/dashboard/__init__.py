"""W&B dashboard of a sweep."""
