"""Many runs from one command: which cells there are, which are done, and where they run."""
