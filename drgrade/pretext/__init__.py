"""Self-supervised tasks. Plain torch: a pretext makes inputs and targets from unlabelled images, and has a head and a loss."""

from drgrade.pretext.base import Pretext
from drgrade.pretext.rotation import Rotation

__all__ = ["Pretext", "Rotation"]
