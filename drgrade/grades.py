"""The grading scale, and constants that the torch metrics share with the NumPy statistics."""

NUM_GRADES = 5
"""Grades of diabetic retinopathy (DR): 0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative."""

REFERABLE = 2
"""Lowest grade of referable DR: moderate non-proliferative DR or worse is sent to an ophthalmologist."""

NUM_BINS = 15
"""Confidence bins: of about equal size for the expected calibration error, of equal width in figures."""

MIN_PROBABILITY = 1e-6
"""Lower bound of a probability in a likelihood; some heads return exactly 0, whose logarithm is infinite."""
