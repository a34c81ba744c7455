"""Metrics over a whole set of photographs, in float64.

``functional`` needs torch alone; ``distributed`` has the torchmetrics classes.
"""
