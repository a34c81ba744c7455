"""Heat maps that explain a prediction, and their display on the original photograph."""
