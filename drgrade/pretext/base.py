"""What every pretext gives to the task that trains it."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from drgrade.errors import EncoderError
from drgrade.models.encoder import Encoder

_SEED = 20201022  # of what is drawn in evaluation; any number


class Pretext(nn.Module):
    """A self-supervised task: targets, a head and a loss; the encoder is handed in.

    A pretext is made with the encoder as its first argument, to see what it can carry: it keeps no reference,
    so that the encoder's parameters are not the pretext's too.

    Attributes:
        scores: Names of what is logged beside the loss.
        num_views: How many views of a photograph it takes.
        encoder_inputs: Images that the trained encoder sees for each photograph and step, in units of a whole
            image: four for the four turns of rotation prediction, one for nine patches of a ninth.
        fewest: Photographs that a batch needs. In validation, where the last batch is what is left over, a
            smaller one counts for nothing; in training it is refused by the pretext.
    """

    scores: tuple[str, ...] = ()
    num_views: int = 1
    encoder_inputs: float = 1.0
    fewest: int = 1

    @abstractmethod
    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            encoder: Images to features.
            views: :attr:`num_views` tensors (B, 3, H_k, W_k), normalised; row i of each is the same
                photograph.

        Returns:
            The loss (a scalar, differentiable, a mean over the batch) and quantities to log: scalars under
            the names of :attr:`scores` that are means over the batch. ``accuracy`` is among them where the
            task has one.
        """

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Prepare a training step; a momentum encoder follows here. Called on every process.

        Args:
            encoder: As the last optimiser step has left it.
            progress: Share of the run's optimiser steps that are done, in [0, 1).
        """

    def trained(self, encoder: Encoder) -> Encoder:
        """The encoder that pre-training leaves behind: the trained one, unless a teacher is the better one.

        Args:
            encoder: The trained one.

        Returns:
            An encoder with the same tensors under the same names.
        """
        return encoder

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Where random numbers of :meth:`forward` come from.

        Args:
            device: On which they are drawn.

        Returns:
            None in training: torch's own, which is seeded for each epoch and process. In evaluation one that
            always draws the same, so that epochs can be compared.
        """
        return None if self.training else torch.Generator(device).manual_seed(_SEED)


def refuse(pretext: str, encoder: Encoder, why: str, instead: str) -> NoReturn:
    """Refuse an encoder that cannot carry a pretext.

    Args:
        pretext: Its name in ``conf/pretext``.
        encoder: The encoder.
        why: What it lacks, as half a sentence.
        instead: What to use, as half a sentence.

    Raises:
        EncoderError: Always.
    """
    name = type(encoder).__name__
    raise EncoderError(f"pretext={pretext} cannot be carried by this encoder ({name}): {why}; {instead}")


def require_map(pretext: str, encoder: Encoder) -> int:
    """Channels of an encoder's feature map.

    Args:
        pretext: Its name in ``conf/pretext``.
        encoder: The encoder.

    Returns:
        Number of channels.

    Raises:
        EncoderError: If there is no such map.
    """
    if encoder.num_map_features is None:
        refuse(pretext, encoder, "it gives no feature map", "use a CNN, a Vision Transformer or msssl")
    return encoder.num_map_features


def require_any_size(pretext: str, encoder: Encoder) -> None:
    """Refuse an encoder that takes images of one size only.

    Args:
        pretext: Its name in ``conf/pretext``.
        encoder: The encoder.

    Raises:
        EncoderError: If so.
    """
    if not encoder.any_size:
        refuse(
            pretext,
            encoder,
            "it takes whole images of one size only, and the task is about pieces of an image",
            "use a CNN, a plain Vision Transformer or msssl",
        )
