"""An encoder and a head as one model, and the views of a photograph that are graded together."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError, EncoderError
from drgrade.models.encoder import Encoder
from drgrade.models.heads import Head


class GradingModel(nn.Module):
    """Normalised images to the logits of the head.

    Attributes:
        encoder: Images to features.
        head: Features to logits; it says what they mean.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        """Puts the parts together.

        Args:
            encoder: Images to features.
            head: Made for as many features.
        """
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Grades.

        Args:
            images: (B, 3, S, S) float, normalised.

        Returns:
            (B, K) float32 logits of the head.
        """
        logits: Tensor = self.head(self.encoder(images))
        return logits.float()

    def load(self, tensors: Mapping[str, Tensor], origin: object) -> None:
        """Takes all weights and buffers; nothing may lack, be left over, or have another shape.

        Args:
            tensors: By their names in this model; others than those of encoder and head are not looked at.
            origin: Where they come from, for the error.

        Raises:
            EncoderError: Naming the tensors that do not fit.
        """
        own = {name: each for name, each in tensors.items() if name.startswith(("encoder.", "head."))}
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise EncoderError(
                f"{origin} does not fit the model that its config describes: {reason}"
            ) from error


View = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) -> the same ones, mirrored or turned."""


def _view(axes: tuple[int, ...] = (), turns: int = 0) -> View:
    """Mirror along the axes, then turn by quarters."""

    def view(images: Tensor) -> Tensor:
        return torch.rot90(torch.flip(images, axes), turns, (-2, -1))

    return view


VIEWS: Mapping[str, Sequence[View]] = {
    "none": (_view(),),
    "flips": (_view(), _view((-1,)), _view((-2,)), _view((-2, -1))),
    "dihedral": tuple(_view(axes, turns) for axes in ((), (-1,)) for turns in range(4)),
}
"""Test-time augmentation: the views whose probabilities are averaged. All are exact: no pixel is computed."""


def views(name: str) -> Sequence[View]:
    """The views of test-time augmentation.

    Args:
        name: ``none``, ``flips`` (4 views) or ``dihedral`` (8: flips and quarter turns).

    Returns:
        One view at least; the first one changes nothing.

    Raises:
        ConfigError: If there is no such augmentation.
    """
    if name not in VIEWS:
        raise ConfigError(f"tta={name} is none of {', '.join(VIEWS)}")
    return VIEWS[name]


def median_grade(probabilities: Tensor) -> Tensor:
    """Reads the grade of a mean distribution: the highest one that half of the probability reaches.

    A mean of several distributions has no head that could read it. For one distribution it is how the
    cumulative, the CORN and the regression head read their own.

    Args:
        probabilities: (B, G), rows with sum 1.

    Returns:
        (B,) int64.
    """
    at_least = probabilities.double().flip(1).cumsum(dim=1).flip(1)  # (B, G): P(grade >= k)
    return (at_least[:, 1:] >= 0.5).sum(dim=1)
