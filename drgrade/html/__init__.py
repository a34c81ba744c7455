"""Templates and styles of HTML pages."""
