"""What is explained: one number of each photograph, whatever the head."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from drgrade.errors import ConfigError
from drgrade.metrics.grading import REFERABLE
from drgrade.models.heads import Head

Target = Literal["expected", "referable", "grade"]

TARGETS: tuple[Target, ...] = get_args(Target)

Score = Callable[[Head, Tensor, Tensor], Tensor]
"""Head, its logits (B, K) and the grades (B,) that were read -> (B,) float32."""

_LEAST = 1e-7
"""Probabilities nearer to 0 or 1 have no logarithm that single precision could hold."""


def _expected(head: Head, logits: Tensor, grades: Tensor) -> Tensor:
    """The expected grade; of a regression head the number itself."""
    return head.severity(logits)


def _referable(head: Head, logits: Tensor, grades: Tensor) -> Tensor:
    """Logarithm of the odds of a grade of 2 or more."""
    return torch.logit(head.probabilities(logits)[:, REFERABLE:].sum(dim=1), eps=_LEAST)


def _grade(head: Head, logits: Tensor, grades: Tensor) -> Tensor:
    """Logarithm of the probability of the grade that was read."""
    own = head.probabilities(logits).gather(1, grades[:, None])[:, 0]
    return own.clamp(min=_LEAST).log()


SCORES: Mapping[str, Score] = {"expected": _expected, "referable": _referable, "grade": _grade}


MEANINGS: Mapping[str, str] = {
    "expected": "what raises the grade that the network expects in this photograph",
    "referable": "what raises the probability of referable retinopathy in this photograph",
    "grade": "what speaks for the grade that the network has read in this photograph",
}
"""What heat marks, for people."""

WITHOUT_TARGET = "where the attention of the network goes in this photograph, whatever the grade"


def score_of(target: str) -> Score:
    """The number that a target asks for.

    Args:
        target: ``expected``: the expected grade: what makes it worse. ``referable``: the log-odds of a grade
            of 2 or more. ``grade``: the log-probability of the grade that was read, also of grade 0.

    Returns:
        From head, logits and grades to the number.

    Raises:
        ConfigError: If there is no such target.
    """
    if target not in SCORES:
        raise ConfigError(f"target={target} is none of {', '.join(TARGETS)}")
    return SCORES[target]
