"""What is to be cited for a run: drgrade, and the papers of its encoder, pretext and head."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from drgrade import __version__
from drgrade.html.templates import resource

DRGRADE = (
    f"The drgrade developers, drgrade: diabetic-retinopathy grading with few labels, version {__version__}"
)
"""As in ``CITATION.cff``."""


@cache
def papers() -> Mapping[str, Mapping[str, Any]]:
    """What ``papers.yaml`` holds: ``of`` (class, or beginning of a timm name: keys), ``papers`` (by key)."""
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(resource("drgrade.model_card", "papers.yaml"))
    return found


def papers_of(*configs: Mapping[str, Any] | None) -> list[str]:
    """Papers of the parts that configs describe.

    Args:
        *configs: Of encoder, pretext, head or probe; None for what there is not.

    Returns:
        Each once: the papers of the classes first, then those of backbones.
    """
    known = papers()
    words = [word for config in configs for word in _words(config)]
    targets = [word.rsplit(".", 1)[-1] for word in words if word.startswith("drgrade.")]
    backbones = [
        kind
        for word in words
        for kind in known["of"]
        if kind.islower() and re.match(rf"(test_)?{kind}(?![a-z])", word)
    ]
    keys = [key for word in [*targets, *backbones] for key in known["of"].get(word, [])]
    return [str(known["papers"][key]) for key in dict.fromkeys(keys)]


def _words(node: object) -> Iterator[str]:
    """Names of classes, and of timm models."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in ("_target_", "cnn", "vit", "name") and isinstance(value, str):
                yield value
            else:
                yield from _words(value)
    elif isinstance(node, list):
        for item in node:
            yield from _words(item)
