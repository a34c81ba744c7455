"""Self-supervised pretext tasks in plain torch: targets from unlabelled photographs, a head and a loss."""
