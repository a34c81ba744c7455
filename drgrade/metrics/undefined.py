"""What happens where a metric has no value."""

import logging

_logger = logging.getLogger("drgrade.metrics")
_warned: set[str] = set()


def undefined(name: str, value: float, reason: str) -> float:
    """Stands in for a metric that the data do not define, and says so once per name and process.

    A NaN would silently break comparisons such as "best checkpoint so far", so there is none.

    Args:
        name: the metric.
        value: what to report instead: the value of a grader who knows nothing.
        reason: why it is undefined.

    Returns:
        `value`.
    """
    if name not in _warned:
        _warned.add(name)
        _logger.warning("%s is undefined (%s); %g is reported. This is said once.", name, reason, value)
    return value
