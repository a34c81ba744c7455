"""Templates and styles shared by all HTML pages."""
