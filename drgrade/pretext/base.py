"""What every pretext gives to the task that trains it."""

from abc import abstractmethod

from torch import Tensor, nn

from drgrade.models.encoder import Encoder


class Pretext(nn.Module):
    """A self-supervised task: views and targets, a head and a loss; the encoder is handed in.

    Attributes:
        scores: Names of what is logged beside the loss.
    """

    scores: tuple[str, ...]

    @abstractmethod
    def forward(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            encoder: Images to features.
            images: (B, 3, H, W) views, normalised.

        Returns:
            The loss (a scalar, differentiable) and quantities to log: scalars that are means over the batch's
            views. ``accuracy`` is among
            them where the task has one.
        """
