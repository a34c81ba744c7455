"""Base class of the pretexts, and functions that several of them share."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor, nn

from drgrade.errors import EncoderError, check_range
from drgrade.models.encoder import Encoder

_EVALUATION_SEED = 20201022

HEAD = "pretext.head."
"""Prefix of the settings of a pretext's head in messages."""


class Pretext(nn.Module):
    """A self-supervised task: targets, a head and a loss.

    The constructor receives the encoder as its first argument to read its sizes. It keeps no reference to it,
    so that the parameters of the encoder are not counted as parameters of the pretext. It raises a
    ConfigError if a setting is out of range, and an EncoderError if the pretext cannot train the encoder.

    Attributes:
        scores: Names of the quantities logged next to the loss.
        num_views: Number of views per photograph.
        encoder_inputs: Number of images that the trained encoder processes per photograph and step, in units
            of a whole image: 4 for the four rotations, 1 for nine patches of a ninth of the image each.
        min_photographs: Smallest number of photographs in a batch. A smaller last batch is skipped in
            validation; in training the pretext rejects it.
    """

    scores: tuple[str, ...] = ()
    num_views: int = 1
    encoder_inputs: float = 1.0
    min_photographs: int = 1

    @abstractmethod
    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            encoder: Maps images to features.
            views: :attr:`num_views` tensors (B, 3, H_k, W_k), normalised; row i of each shows the same
                photograph.

        Returns:
            The loss (differentiable scalar, mean over the batch) and detached scalars, named by
            :attr:`scores`, that are means over the batch.
        """

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Prepare a training step, for example update a momentum encoder. Called on every process.

        Args:
            encoder: The encoder after the last optimiser step.
            progress: Completed share of the optimiser steps of the run, in [0, 1).
        """

    def final_encoder(self, encoder: Encoder) -> Encoder:
        """Return the encoder to save after pre-training: the trained one, unless a teacher is better.

        Its tensors have the names and shapes of those of the trained one.
        """
        return encoder

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return the random generator for :meth:`forward`.

        In training it is None, for torch's global generator, which is seeded per epoch and process. In
        evaluation it is a generator with a fixed seed, so that epochs can be compared.
        """
        return None if self.training else torch.Generator(device).manual_seed(_EVALUATION_SEED)


def classifier(features: int, hidden: Sequence[int], dropout: float, classes: int) -> nn.Sequential:
    """Build a head from ``features`` to ``classes``: linear layers with ReLU, and dropout before the last.

    Raises:
        ConfigError: If a width of ``hidden`` is smaller than 1.
    """
    check_range("[1, inf)", HEAD, hidden=min(hidden, default=1))
    layers: list[nn.Module] = []
    widths = [features, *hidden]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], classes))


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of logits (..., K) whose maximum is at the target (...) int64."""
    return (logits.detach().argmax(dim=-1) == targets).float().mean()


@contextmanager
def frozen_evaluation(encoder: Encoder) -> Iterator[None]:
    """Put an encoder into evaluation mode without gradients, and restore its mode afterwards."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.train(training)


def reject_encoder(pretext: str, encoder: Encoder, reason: str, alternative: str) -> NoReturn:
    """Raise the EncoderError for an encoder that a pretext cannot train, with a reason and an alternative."""
    name = type(encoder).__name__
    raise EncoderError(f"pretext={pretext} cannot train this encoder ({name}): {reason}; {alternative}")


def require_map(pretext: str, encoder: Encoder) -> int:
    """Return the number of channels of an encoder's feature map; raise an EncoderError if it has none."""
    if encoder.num_map_features is None:
        reject_encoder(pretext, encoder, "it has no feature map", "use a CNN, a Vision Transformer or msssl")
    return encoder.num_map_features


def require_any_size(pretext: str, encoder: Encoder) -> None:
    """Raise an EncoderError unless an encoder accepts images of any size."""
    if not encoder.any_size:
        reject_encoder(
            pretext,
            encoder,
            "it accepts images of one size only, and the task uses smaller images",
            "use a CNN, a plain Vision Transformer or msssl",
        )
