"""Runs: from a composed config to the artefacts of DESIGN.md, section 4."""
