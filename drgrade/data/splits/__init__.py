"""Test folds, validation sets and nested label fractions."""
