"""Tests of trained runs, on their own test photographs or on any data set: ``drgrade evaluate``."""
