"""Heat maps of what a prediction depends on, and their display on the original photograph."""
