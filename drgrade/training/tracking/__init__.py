"""Watching runs in Weights & Biases, MLflow and TensorBoard. None of them is imported before it is used."""
