"""Shared parts of the pretexts that compare embeddings of the photographs of a batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise

import torch
from lightly.models.modules.heads import ProjectionHead
from lightly.utils import dist
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder, to_float32
from drgrade.pretext.base import HEAD, Pretext


class ContrastivePretext(Pretext):
    """Base of the pretexts that compare two views of a photograph with those of others."""

    num_views = 2
    encoder_inputs = 2.0
    min_photographs = 2

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """Return the rows to compare with, and the index of the first own row.

        In training these are the rows of all processes, in evaluation the own ones. Raises a ConfigError if
        there is only one photograph.
        """
        gathered, start = gather_rows(rows) if self.training else (rows, 0)
        if len(gathered) < self.min_photographs:
            raise ConfigError(
                f"{type(self).__name__} compares the photographs of a batch, but there is only one; set "
                f"pretext.batch_size to at least {self.min_photographs}, and pre-train on as many photographs"
            )
        return gathered, start


def projection_head(widths: Sequence[int], batch_norm: bool = True) -> ProjectionHead:
    """Build a projection head from (B, widths[0]) to (B, widths[-1]): linear layers with ReLU between them.

    With ``batch_norm`` every layer, including the last, is normalised and has no bias, as in SimCLR (Chen et
    al., ICML 2020, and their code).

    Raises:
        ConfigError: If a width is smaller than 1.
    """
    if min(widths) < 1:
        raise ConfigError(f"{HEAD[:-1]}: layer widths {list(widths)} are not all at least 1")
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
    """Encode and project views (B, 3, H_k, W_k); return embeddings (B, P) for each.

    Consecutive views of one size form one batch and share their batch statistics, as in SimCLR.
    """
    embeddings: list[Tensor] = []
    for _, group in groupby(views, key=lambda view: view.shape[-2:]):
        same_size = list(group)
        embeddings += head(encoder(torch.cat(same_size))).chunk(len(same_size))
    return embeddings


@contextmanager
def full_precision(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Convert rows to float32 and disable autocast while they are compared; float64 stays.

    Cosines in half precision have steps of up to 0.004, which is large after division by a temperature.
    """
    with torch.autocast(rows[0].device.type, enabled=False):
        yield tuple(to_float32(each) for each in rows)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Concatenate the rows (B, ...) of all processes, and return the index of the first own row.

    Gradients flow back to the process of each row. The gradient of a row is the sum over the losses of all W
    processes. DDP divides parameter gradients by W, so each process must return the mean loss over its own
    rows: then both loss and gradient are those of the joined batch.

    Use it in training only, where all processes have equally many batches of equal size. In validation they
    may not, and would wait for each other forever.
    """
    if dist.world_size() == 1:
        return rows, 0
    return torch.cat(dist.gather(rows.contiguous())), dist.rank() * len(rows)
