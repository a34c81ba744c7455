"""Several pretexts at once, each with a weight, on one encoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from drgrade.data.transforms import MultiView
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext

Part = Mapping[str, Any]
"""What ``conf/pretext/NAME.yaml`` sets: ``head``, which makes the pretext for an encoder, ``views``, and with
``conf/pretext/combination/part.yaml`` the ``weight`` of its loss."""

COMMON = ("init", "epochs", "max_steps", "batch_size", "val_fraction", "seed", "optimizer", "schedule")
"""What is set for a combination and not for its parts."""


class Combination(Pretext):
    """Train an encoder on several tasks at once: the loss is the weighted sum of theirs.

    L = sum_k w_k L_k. Each task has its own views and its own head, and all have the encoder in common
    (Doersch and Zisserman, ICCV 2017, train several self-supervised tasks on one network).

    Attributes:
        parts: The pretexts, by name.
        weights: Of their losses, by name.
    """

    def __init__(self, encoder: Encoder, parts: Mapping[str, Part]) -> None:
        """Make the pretexts.

        Args:
            encoder: What is to be trained; every part must be able to use it.
            parts: Name: pretext, in the order of their views.

        Raises:
            ConfigError: If there are fewer than two parts, a weight is no positive number, a part sets what
                is set for all parts together, or two parts would leave behind an encoder of their own each.
            EncoderError: If a part cannot use the encoder.
        """
        super().__init__()
        _refuse_fewer_than_two(parts)
        for name, part in parts.items():
            _refuse_common_settings(name, part)
        self.weights = {name: _weight(name, part) for name, part in parts.items()}
        made: dict[str, Pretext] = {name: part["head"](encoder) for name, part in parts.items()}
        self.parts = nn.ModuleDict(made)
        self.num_views = sum(part.num_views for part in made.values())
        self.encoder_inputs = sum(part.encoder_inputs for part in made.values())
        self.fewest = max(part.fewest for part in made.values())
        self.scores = tuple(
            f"{name}/{score}" for name, part in made.items() for score in ("loss", *part.scores)
        )
        self._refuse_two_teachers(encoder)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`. Scores are named ``part/score``, and ``part/loss`` has no weight in it."""
        losses: list[Tensor] = []
        scores: dict[str, Tensor] = {}
        first = 0
        for name, part in self._named():
            loss, found = part(encoder, views[first : first + part.num_views])
            first += part.num_views
            losses.append(self.weights[name] * loss)
            scores |= {f"{name}/{score}": value for score, value in {"loss": loss.detach(), **found}.items()}
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total, scores

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Prepare a step of each part; see :class:`Pretext`."""
        for _, part in self._named():
            part.before_step(encoder, progress)

    def trained(self, encoder: Encoder) -> Encoder:
        """The encoder that a part prefers, else the trained one; see :class:`Pretext`."""
        return next(iter(self._preferred(encoder).values()), encoder)

    def _named(self) -> list[tuple[str, Pretext]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Pretext)]

    def _preferred(self, encoder: Encoder) -> dict[str, Encoder]:
        """Encoders that parts would leave behind in place of the trained one."""
        left = {name: part.trained(encoder) for name, part in self._named()}
        return {name: other for name, other in left.items() if other is not encoder}

    def _refuse_two_teachers(self, encoder: Encoder) -> None:
        names = list(self._preferred(encoder))
        if len(names) > 1:
            raise ConfigError(
                f"pretext.parts: {' and '.join(names)} each leave an encoder of their own behind, and only "
                "one can be kept; combine one of them with other pretexts"
            )


def views_of(parts: Mapping[str, Part]) -> MultiView:
    """Views of all parts, one part after the other.

    Args:
        parts: As :class:`Combination` takes them.

    Returns:
        Makes what :meth:`Combination.forward` takes.

    Raises:
        ConfigError: If there are fewer than two parts.
    """
    _refuse_fewer_than_two(parts)
    return MultiView([part["views"] for part in parts.values()])


def _refuse_fewer_than_two(parts: Mapping[str, Part]) -> None:
    if len(parts) < 2:
        raise ConfigError(
            f"pretext.parts: a combination has two pretexts at least, not {len(parts)} "
            f"({', '.join(parts) or 'none'}); docs/pretexts/combinations.md shows how to name them"
        )


def _refuse_common_settings(name: str, part: Part) -> None:
    given = [setting for setting in COMMON if part.get(setting) is not None]
    if given:
        setting = given[0]
        raise ConfigError(
            f"pretext.parts.{name}.{setting} has no effect: all parts have pretext.{setting}; set that "
            f"(in a combination's file, combination/part@parts.{name} stands after {name}@parts.{name})"
        )


def _weight(name: str, part: Part) -> float:
    weight: Any = part.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ConfigError(
            f"pretext.parts.{name}.weight={weight} is not a positive number; a pretext is left out by taking "
            "its lines out of the combination's file"
        )
    return float(weight)
