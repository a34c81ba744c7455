"""Explains what a grader says of photographs: a map of heat for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.data.normalisation import normalise
from drgrade.errors import ConfigError
from drgrade.explanation.attribution import attention_map, captum, grad_cam
from drgrade.grades import REFERABLE
from drgrade.models.feature_maps import AttentionLayers, ExplainableLayer, MapLayer
from drgrade.models.heads import Head
from drgrade.prediction.checkpoint import Trained
from drgrade.prediction.grader import Graded, Grader

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


AUTO, COMBINED = "auto", "combined"


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is said of B photographs, and what it hangs on.

    Attributes:
        graded: What the grader says of them.
        heat: Name of the map: (B, S, S) float32 in [0, 1], on the prepared photographs. It is relative: 1 is
            the hottest place of each photograph. All 0 where nothing raises the target.
        main: The map to show: the first that was asked for.
    """

    graded: Graded
    heat: Mapping[str, npt.NDArray[np.float32]]
    main: str


class Explainer:
    """Explains what a grader says, by the maps of its encoder.

    Of an ensemble the maps are the means of its members'. Test-time augmentation has no part in them: they
    are of the photograph as it is.

    Attributes:
        grader: Whose grades are explained.
        names: Of the maps that are made, ``auto`` resolved where all members resolve it alike.
        meaning: What the heat of the main map marks, in words.
    """

    def __init__(self, grader: Grader, maps: Sequence[str] = (AUTO,), target: str = "expected") -> None:
        """Find the layers.

        Args:
            grader: Whose grades are explained; it is not changed.
            maps: Names of :func:`available`, at least one; the first is the main one.
            target: What is explained; see :func:`drgrade.explanation.explainer.score_of`.

        Raises:
            ConfigError: If there is no such map or target, or captum is needed and missing.
        """
        if not maps:
            raise ConfigError(f"maps is empty; maps={AUTO} takes the encoder's own choice")
        self.grader = grader
        self._score = score_of(target)
        side = grader.preparation.image_size
        self._layers = [dict(member.model.encoder.maps_to_explain(side)) for member in grader.members]
        self._recipes = [
            {name: _recipe(name, layers, member) for name in dict.fromkeys(maps)}
            for member, layers in zip(grader.members, self._layers, strict=True)
        ]
        if any(isinstance(layer, MapLayer) for name in maps for layer in self._looked_at(name)):
            captum()  # that it is missing is said before photographs have been graded
        self._names = {name: self._resolved(name) for name in self._recipes[0]}
        self.names = tuple(dict.fromkeys(self._names.values()))
        self.meaning = self._meaning(next(iter(self._names)), target)

    def explain(self, pixels: npt.NDArray[np.uint8] | Tensor) -> Explanation:
        """Grade and explain prepared photographs.

        Args:
            pixels: (B, S, S, 3) uint8 RGB, prepared as the grader's preparation says; B at least 1.

        Returns:
            Grades and heat, in their order.

        Raises:
            ConfigError: If a head says the same whatever the photograph shows.
        """
        graded = self.grader.grade(pixels)
        return Explanation(graded, self.heat(pixels, graded.grades.tolist()), self.names[0])

    def heat(
        self, pixels: npt.NDArray[np.uint8] | Tensor, grades: Sequence[int]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Explain photographs that have been graded.

        Args:
            pixels: (B, S, S, 3) uint8 RGB, as for :meth:`explain`.
            grades: (B,) as they were read.

        Returns:
            As in :class:`Explanation`.

        Raises:
            ConfigError: As :meth:`explain`.
        """
        images = normalise(torch.as_tensor(pixels).to(self.grader.device).permute(0, 3, 1, 2))
        read = torch.tensor(grades, device=images.device)
        each = [self._of_member(number, images, read) for number in range(len(self.grader.members))]
        return {
            shown: _scaled(torch.stack([own[name] for own in each]).mean(dim=0)).cpu().numpy()
            for name, shown in self._names.items()
        }

    def _of_member(self, number: int, images: Tensor, grades: Tensor) -> dict[str, Tensor]:
        """Heat by what was asked for, each (B, S, S); no layer is looked at twice."""
        member, layers, recipes = self.grader.members[number], self._layers[number], self._recipes[number]
        scores = partial(_scores, member, self._score, grades)
        wanted = dict.fromkeys(layer for recipe in recipes.values() for layer in recipe)
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            found = {layer: _heat(scores, layers[layer], images) for layer in wanted}
        return {
            name: torch.stack([found[layer] for layer in recipe]).mean(dim=0)
            for name, recipe in recipes.items()
        }

    def _looked_at(self, name: str) -> list[ExplainableLayer]:
        """The layers behind a map, of all members."""
        return [
            layers[layer]
            for layers, recipes in zip(self._layers, self._recipes, strict=True)
            for layer in recipes[name]
        ]

    def _meaning(self, name: str, target: str) -> str:
        plain = all(isinstance(each, AttentionLayers) and not each.weighted for each in self._looked_at(name))
        return WITHOUT_TARGET if plain else MEANINGS[target]

    def _resolved(self, name: str) -> str:
        used = {recipe[name] for recipe in self._recipes}
        return next(iter(used))[0] if name == AUTO and len(used) == 1 and len(next(iter(used))) == 1 else name


def available(grader: Grader) -> tuple[str, ...]:
    """Names of the maps that all members of a grader have.

    Args:
        grader: Of one or several trained runs.

    Returns:
        ``auto`` and, where there are several maps of the target, ``combined``; then the layers'.
    """
    side = grader.preparation.image_size
    found = [member.model.encoder.maps_to_explain(side) for member in grader.members]
    common = [name for name in found[0] if all(name in other for other in found)]
    return (AUTO, COMBINED, *common)


def _recipe(name: str, layers: Mapping[str, ExplainableLayer], member: Trained) -> tuple[str, ...]:
    """The layers whose mean a map is."""
    if not layers:
        raise ConfigError(f"{member.folder}: its encoder has no layer that knows where it is")
    if name == AUTO:
        return (next(iter(layers)),)
    if name == COMBINED:
        return tuple(each for each, layer in layers.items() if isinstance(layer, MapLayer) or layer.weighted)
    if name not in layers:
        raise ConfigError(
            f"maps={name}: {member.folder} has none; there are {', '.join((AUTO, COMBINED, *layers))}"
        )
    return (name,)


def _scores(member: Trained, score: Score, grades: Tensor, images: Tensor) -> Tensor:
    values = score(member.model.head, member.model(images), grades)
    if not values.requires_grad:
        raise ConfigError(
            f"{member.folder}: its head ({type(member.model.head).__name__}) says the same whatever the "
            "photograph shows; there is nothing to explain"
        )
    return values


def _heat(scores: Callable[[Tensor], Tensor], layer: ExplainableLayer, images: Tensor) -> Tensor:
    """(B, S, S), the hottest place of each photograph 1."""
    if isinstance(layer, MapLayer):
        cells = grad_cam(scores, layer, images)
    else:
        cells = attention_map(scores, layer, images)
        # Something arrives from everywhere: what there is more than at the least attended place is heat.
        cells = cells - cells.amin(dim=(1, 2), keepdim=True)
    side = images.shape[-1]
    # Padding lies at the right and at the bottom.
    large = F.interpolate(
        cells[:, None], size=(layer.covers, layer.covers), mode="bilinear", align_corners=False
    )
    return _scaled(large[:, 0, :side, :side])


def _scaled(heat: Tensor) -> Tensor:
    """Divide by the hottest place of each photograph; nothing stays nothing."""
    highest = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, heat / highest.clamp(min=torch.finfo(heat.dtype).tiny), 0.0)
