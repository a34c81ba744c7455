"""Estimate batch statistics and fit a linear head with a frozen encoder, before it is trained."""

import hashlib
import logging
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.data.datasets import UNGRADED, AugmentedView, SampleIndex, StoreDataset
from drgrade.data.photographs import Photographs
from drgrade.data.transforms import normalise
from drgrade.models.batch_norm import estimate_statistics
from drgrade.models.encoder import Encoder
from drgrade.models.heads import Head
from drgrade.models.probes import LinearProbe
from drgrade.tasks.grading import GradingTask
from drgrade.training.distributed import is_main_process

log = logging.getLogger(__name__)

_MOST = 4096
"""Largest number of photographs; in the paper 1,000 to 10,000 images give the same accuracy as more."""


def statistics_rows(photographs: Photographs) -> npt.NDArray[np.int64]:
    """Choose the photographs (N,) for the statistics, as rows of the manifest, in random order.

    They are those of the training side of the split, whether graded or not, and so are equal for all label
    fractions and validation sets. Data sets of ``data.unlabelled`` are left out: the statistics are to be
    those of the photographs that will be graded. The order mixes grades and cameras within a batch; it
    depends on ``split.seed`` only.
    """
    side = photographs.sides.training_side.to_numpy(dtype=bool)
    rows = np.flatnonzero(side & (photographs.manifest["role"] == "labelled").to_numpy())
    return np.random.default_rng([photographs.spec.seed, 4]).permutation(rows)[:_MOST]


def statistics_key(photographs: Photographs, batch_size: int) -> str:
    """Return the SHA-256 of the photographs and batches that determine the statistics."""
    files = photographs.manifest["file_sha256"].iloc[statistics_rows(photographs)]
    return hashlib.sha256("\n".join([str(batch_size), *files]).encode()).hexdigest()


def estimate_encoder_statistics(
    encoder: Encoder, photographs: Photographs, batch_size: int, device: torch.device
) -> None:
    """Estimate an encoder's running statistics on whole photographs of the training side, without labels.

    A pretext leaves those of its views, which are masked, levelled and jittered; with them, features of whole
    photographs are worse than they could be. Photographs are not augmented. Every process of a run computes
    the same statistics.

    Args:
        encoder: Its running statistics are replaced; the weights do not change.
        photographs: Photographs of the run, with their split.
        batch_size: Photographs in a batch; a last, smaller one is left out.
        device: Device to compute on; the encoder stays there.
    """
    rows = statistics_rows(photographs)
    if len(rows) < 2:  # one photograph may have a single value per channel, and so no variance
        return
    size = min(batch_size, len(rows))
    batches = _batches(photographs, rows[: len(rows) // size * size], size, encoder.to(device))
    count = estimate_statistics(encoder, batches)
    if count and is_main_process():
        log.info("batch statistics: estimated on %d batches of photographs of the training side", count)


def fit_linear_head(
    task: GradingTask,
    head: Callable[..., Head],
    photographs: Photographs,
    batch_size: int,
    device: torch.device,
) -> None:
    """Fit the head to the features of the labelled photographs, before the encoder is trained with it.

    Linear probing, then fine-tuning (Kumar et al., "Fine-tuning can distort pretrained features and
    underperform out-of-distribution", ICLR 2022): gradients of a random head would change good features at
    first. The fit is that of ``protocol=linear``, with its penalty chosen on the validation photographs.

    Args:
        task: Its head, of one linear layer, is replaced; its encoder stays on the device.
        head: Creates such a head.
        photographs: Photographs of the run, with their split.
        batch_size: Photographs that are encoded at once.
        device: Device to compute on.
    """
    probe = LinearProbe(task.encoder.num_features, head)
    train, val = (
        _graded_features(task.encoder.to(device), photographs, subset, batch_size)
        for subset in ("train", "val")
    )
    fitted = probe.fit(*train, val if len(val[1]) else None)
    task.head.layers.load_state_dict(probe.head.layers.state_dict())
    if is_main_process():
        log.info("linear head: fitted to %d photographs, penalty %g", len(train[1]), fitted["penalty"])


@torch.no_grad()
def _graded_features(
    encoder: Encoder, photographs: Photographs, subset: str, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) float32 and grades (N,) of a subset, on the CPU."""
    chosen = photographs.split["subset"] == subset
    rows = np.flatnonzero(chosen).astype(np.int64)
    grades = photographs.split["grade"][chosen].astype("int64").to_numpy(copy=True)
    training = encoder.training
    encoder.eval()
    parts = [encoder(batch).float().cpu() for batch in _batches(photographs, rows, batch_size, encoder)]
    encoder.train(training)
    features = torch.cat(parts) if parts else torch.zeros(0, encoder.num_features)
    return features, torch.from_numpy(grades)


def _batches(
    photographs: Photographs, rows: npt.NDArray[np.int64], size: int, encoder: Encoder
) -> Iterator[Tensor]:
    """Yield photographs without augmentation, normalised, with the dtype and on the device of an encoder."""
    like = next(encoder.parameters())
    dataset = StoreDataset(
        photographs.image_files, rows.tolist(), [UNGRADED] * len(rows), AugmentedView(None)
    )
    for start in range(0, len(rows), size):
        pixels = [dataset[SampleIndex(i, None)]["image"] for i in range(start, min(start + size, len(rows)))]
        yield normalise(torch.stack(pixels).to(like.device)).to(like.dtype)
