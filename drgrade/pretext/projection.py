"""What pretexts that compare embeddings share: a head, embeddings of views, the rows of all processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise

import torch
from lightly.models.modules.heads import ProjectionHead
from lightly.utils import dist
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder

FEWEST = 2
"""Photographs of a batch in which something can be compared."""


def mlp(widths: Sequence[int], batch_norm: bool = True) -> ProjectionHead:
    """A projection head: linear layers with ReLU between them.

    With batch normalisation after every layer, the last one too, it is the head of SimCLR (Chen et al., ICML
    2020, and their code); a layer that is normalised has no bias of its own.

    Args:
        widths: Of input, hidden layers and output, each at least 1.
        batch_norm: Normalise every layer.

    Returns:
        (B, widths[0]) to (B, widths[-1]).

    Raises:
        ConfigError: If there are fewer than two widths, or one is not at least 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ConfigError(
            f"pretext.head: {list(widths)} are not the widths of a projection: features, hidden layers if "
            "any, embedding, each at least 1"
        )
    last = len(widths) - 2
    return ProjectionHead(
        [
            (
                before,
                after,
                nn.BatchNorm1d(after) if batch_norm else None,
                None if number == last else nn.ReLU(inplace=True),
            )
            for number, (before, after) in enumerate(pairwise(widths))
        ]
    )


def embed(encoder: Encoder, head: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """Encode and project views; neighbours of one size go through together, as one batch.

    Together they also share the statistics of batch normalisation, as in SimCLR.

    Args:
        encoder: Images to features.
        head: (N, D) features to (N, P) embeddings.
        views: Tensors (B, 3, H_k, W_k).

    Returns:
        (B, P) for each view.
    """
    embeddings: list[Tensor] = []
    for _, group in groupby(views, key=lambda view: view.shape[-2:]):
        alike = list(group)
        embeddings += head(encoder(torch.cat(alike))).chunk(len(alike))
    return embeddings


@contextmanager
def full_precision(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows in single precision at least, and no lower one while they are compared.

    Cosines in half precision have steps of up to 0.004; over a temperature, or beside a margin, that is much.

    Args:
        *rows: In any precision.

    Yields:
        The same in float32, or in float64 if they were.
    """
    with torch.autocast(rows[0].device.type, enabled=False):
        yield tuple(each if each.dtype == torch.float64 else each.float() for each in rows)


def require_company(pretext: str, photographs: int) -> None:
    """Refuse a batch in which nothing can be compared.

    Args:
        pretext: Its name in ``conf/pretext``.
        photographs: In the batch, over all processes.

    Raises:
        ConfigError: If there are fewer than :data:`FEWEST`.
    """
    if photographs < FEWEST:
        raise ConfigError(
            f"pretext={pretext} compares a photograph with others of its batch, and there is none; set "
            f"pretext.batch_size to {FEWEST} or more, and pre-train on as many photographs"
        )


def of_all_processes(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, differentiable: a loss on any process reaches the rows of every other.

    The gradient of a row is the *sum* of what the losses of all W processes say of it. DDP divides the
    gradients of parameters by W, so the loss of each process has to be a mean over its own rows: the mean of
    the W losses is then that of the joined batch, and so is the gradient.

    Only for training: there all processes have as many batches, and as many rows in each. In validation they
    need not, and would wait for each other for ever.

    Args:
        rows: (B, ...), B the same on all processes.

    Returns:
        (W * B, ...), and where this process' own rows begin.
    """
    if dist.world_size() == 1:
        return rows, 0
    return torch.cat(dist.gather(rows.contiguous())), dist.rank() * len(rows)
