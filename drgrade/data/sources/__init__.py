"""Readers of public data sets and of folders of photographs."""
