"""drgrade: diabetic-retinopathy grading with few labels."""

__version__ = "0.1.0"
