"""Bootstrap, intervals and number formatting."""
