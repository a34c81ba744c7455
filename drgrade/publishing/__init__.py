"""Publishing of a trained run as a folder or on the Hugging Face hub: ``drgrade publish``."""
