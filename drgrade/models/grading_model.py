"""An encoder and a head as one model, and test-time augmentation."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from drgrade.errors import ConfigError, EncoderError
from drgrade.models.encoder import Encoder, check_finite
from drgrade.models.heads import Head


class GradingModel(nn.Module):
    """Normalised images (B, 3, S, S) to the logits (B, K) of the head."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) float32 of normalised images (B, 3, S, S)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits.float()

    def load(self, tensors: Mapping[str, Tensor], origin: object) -> None:
        """Load all weights and buffers from tensors by name; those of other modules are ignored.

        Args:
            tensors: Tensors by their names in this model.
            origin: Where the tensors come from, for the error message.

        Raises:
            EncoderError: If a tensor is missing, left over, of another shape or not finite.
        """
        own = {name: each for name, each in tensors.items() if name.startswith(("encoder.", "head."))}
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise EncoderError(f"{origin} does not fit the model of its config: {reason}") from error
        check_finite(self.state_dict(), origin)


def check_outputs(logits: Tensor) -> None:
    """Raise EncoderError if logits of a batch are NaN or infinite, so that nothing is graded by them."""
    if not bool(torch.isfinite(logits).all()):
        raise EncoderError(
            "the model outputs numbers that are not finite, so nothing is graded: its training has diverged "
            "(lower optimizer.lr), or its weights are damaged"
        )


View = Callable[[Tensor], Tensor]
"""Maps images (B, 3, S, S) to flipped or rotated ones."""


def _view(axes: tuple[int, ...] = (), turns: int = 0) -> View:
    """Return a view that flips along the axes, then rotates by quarter turns."""

    def view(images: Tensor) -> Tensor:
        return torch.rot90(torch.flip(images, axes), turns, (-2, -1))

    return view


TTA_VIEWS: Mapping[str, Sequence[View]] = {
    "none": (_view(),),
    "flips": (_view(), _view((-1,)), _view((-2,)), _view((-2, -1))),
    "dihedral": tuple(_view(axes, turns) for axes in ((), (-1,)) for turns in range(4)),
}
"""Test-time augmentation: views whose probabilities are averaged. All are exact, without interpolation."""


def tta_views(name: str) -> Sequence[View]:
    """Return the views of ``none``, ``flips`` (4 views) or ``dihedral`` (8: flips and quarter turns).

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in TTA_VIEWS:
        raise ConfigError(f"tta={name} is not one of {', '.join(TTA_VIEWS)}")
    return TTA_VIEWS[name]


def median_grade(probabilities: Tensor) -> Tensor:
    """Read the grade of averaged distributions (B, G): the highest k with P(grade >= k) of at least 0.5.

    No single head can read an average over models or views. For one distribution this is how the cumulative,
    the CORN and the regression head read it.

    Example:
        >>> median_grade(torch.tensor([[0.2, 0.2, 0.3, 0.2, 0.1]]))
        tensor([2])
    """
    at_least = probabilities.double().flip(1).cumsum(dim=1).flip(1)  # (B, G): P(grade >= k)
    return (at_least[:, 1:] >= 0.5).sum(dim=1)
