"""Explanations: which part of a photograph a grade hangs on. docs/explanations.md says how to read them."""
