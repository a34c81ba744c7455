"""Experiment loggers: Weights & Biases, MLflow and TensorBoard, imported when they are used."""
