"""Local web page that grades uploaded photographs with a trained run: ``drgrade app``."""
