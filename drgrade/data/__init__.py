"""Photographs: sources, geometry, the prepared store, splits, augmentation, DataModules."""
