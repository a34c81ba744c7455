"""Combination of several weighted pretexts on one encoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from drgrade.data.transforms import MultiView
from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext

Part = Mapping[str, Any]
"""Settings of ``conf/pretext/NAME.yaml`` (``head`` builds the pretext for an encoder, and ``views``), plus
the ``weight`` of ``conf/pretext/combination/part.yaml``."""

COMMON = ("init", "epochs", "max_steps", "batch_size", "val_fraction", "seed", "optimizer", "schedule")
"""Settings of a combination that its parts cannot have."""


class Combination(Pretext):
    """Train an encoder on several tasks with the weighted sum of their losses, L = sum_k w_k L_k.

    Every task has its own views and its own head (Doersch and Zisserman, ICCV 2017). Scores are named
    ``part/score``; ``part/loss`` is the unweighted loss.

    Attributes:
        parts: The pretexts, by name.
        weights: Weights of their losses, by name.
    """

    def __init__(self, encoder: Encoder, parts: Mapping[str, Part]) -> None:
        """Build the pretexts.

        Args:
            encoder: Encoder that every part can train.
            parts: Settings by name, in the order of their views.

        Raises:
            ConfigError: If there are fewer than two parts, a weight is not a positive number, a part has a
                setting in :data:`COMMON`, or more than one part replaces the trained encoder by its own.
            EncoderError: If a part cannot train the encoder.
        """
        super().__init__()
        _check_parts(parts)
        self.weights = {name: float(part["weight"]) for name, part in parts.items()}
        pretexts: dict[str, Pretext] = {name: part["head"](encoder) for name, part in parts.items()}
        self.parts = nn.ModuleDict(pretexts)
        self.num_views = sum(part.num_views for part in pretexts.values())
        self.encoder_inputs = sum(part.encoder_inputs for part in pretexts.values())
        self.min_photographs = max(part.min_photographs for part in pretexts.values())
        self.scores = tuple(
            f"{name}/{score}" for name, part in pretexts.items() for score in ("loss", *part.scores)
        )
        teachers = [name for name, part in pretexts.items() if part.final_encoder(encoder) is not encoder]
        if len(teachers) > 1:
            raise ConfigError(
                f"pretext.parts: {' and '.join(teachers)} each replace the trained encoder by their own, and "
                "only one can be saved; combine one of them with other pretexts"
            )

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of the losses; see :class:`Pretext`."""
        losses: list[Tensor] = []
        scores: dict[str, Tensor] = {}
        first = 0
        for name, part in self._named_parts():
            loss, own_scores = part(encoder, views[first : first + part.num_views])
            first += part.num_views
            losses.append(self.weights[name] * loss)
            scores[f"{name}/loss"] = loss.detach()
            scores |= {f"{name}/{score}": value for score, value in own_scores.items()}
        return sum(losses[1:], losses[0]), scores

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Prepare a step of each part; see :class:`Pretext`."""
        for _, part in self._named_parts():
            part.before_step(encoder, progress)

    def final_encoder(self, encoder: Encoder) -> Encoder:
        """Return the encoder of the part that has its own, else the trained one; see :class:`Pretext`."""
        final = [part.final_encoder(encoder) for _, part in self._named_parts()]
        return next((other for other in final if other is not encoder), encoder)

    def _named_parts(self) -> list[tuple[str, Pretext]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Pretext)]


def combine_views(parts: Mapping[str, Part]) -> MultiView:
    """Return the transform that computes the views of all parts, one part after the other."""
    _check_count(parts)
    return MultiView([part["views"] for part in parts.values()])


def _check_count(parts: Mapping[str, Part]) -> None:
    if len(parts) < 2:
        raise ConfigError(
            f"pretext.parts: a combination needs at least two pretexts, not {len(parts)} "
            f"({', '.join(parts) or 'none'}); docs/pretexts/combinations.md shows how to name them"
        )


def _check_parts(parts: Mapping[str, Part]) -> None:
    _check_count(parts)
    for name, part in parts.items():
        setting = next((setting for setting in COMMON if part.get(setting) is not None), None)
        if setting:
            raise ConfigError(
                f"pretext.parts.{name}.{setting} has no effect: set pretext.{setting}, which holds for all "
                f"parts (in the file, combination/part@parts.{name} must follow {name}@parts.{name})"
            )
        weight: Any = part.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ConfigError(
                f"pretext.parts.{name}.weight={weight} is not a positive number; to leave a pretext out, "
                "remove its lines from the file of the combination"
            )
