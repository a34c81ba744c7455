"""What stands under everything that a grader says."""

NOTICE = "For research. No medical device: not to be used to diagnose or treat anybody."
