"""LightningModules. They orchestrate training and evaluation; the mathematics is in the packages below."""
