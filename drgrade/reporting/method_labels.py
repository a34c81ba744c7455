"""Labels."""

from collections.abc import Mapping

from drgrade.reporting.schema import Method, MethodComparison, Study
from drgrade.stats.formatting import MINUS


def labels(study: Study) -> Mapping[str, str]:
    """What people call the methods, by key."""
    return {method.key: method.label for method in study.methods}


def pair(comparison: MethodComparison, names: Mapping[str, str]) -> str:
    """The two methods of a comparison."""
    return f"{names[comparison.first]} {MINUS} {names[comparison.second]}"


def fractions(study: Study) -> list[float]:
    """Label fractions that were computed, rising."""
    return sorted({row.label_fraction for row in study.rows})


def what_pretraining_saw(method: Method) -> str:
    """A remark on a method; empty if there is nothing to say."""
    if method.saw_test:
        return "pre-training saw the test photographs, without their grades"
    if method.saw_test is None:
        return "not known whether pre-training saw the test photographs"
    return ""
