"""Bootstrap, significance tests, curves and number formatting."""
