"""``drgrade evaluate``: trained runs tested again, on their own test photographs or on any data set."""
