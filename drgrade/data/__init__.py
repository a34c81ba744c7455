"""Photographs: where they come from, their geometry, the prepared store, splits, augmentation, DataModules."""
