"""A trained run at work: evaluated, predicting, explained, exported, published, tried out."""
