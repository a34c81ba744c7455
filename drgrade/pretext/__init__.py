"""Self-supervised tasks, in plain torch: inputs and targets from unlabelled images, a head, a loss."""

from drgrade.pretext.base import Pretext
from drgrade.pretext.rotation import Rotation

__all__ = ["Pretext", "Rotation"]
