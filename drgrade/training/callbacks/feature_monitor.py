"""Monitor the features during pre-training: do they collapse, and do neighbours have the same grade?"""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from drgrade.data.datamodules import PretextDataModule
from drgrade.metrics.distributed import gather_rows
from drgrade.metrics.functional import (
    confusion_matrix,
    effective_rank,
    feature_std,
    quadratic_weighted_kappa,
)
from drgrade.models.encoder import Encoder
from drgrade.models.probes import knn_shares
from drgrade.tasks.pretext import PretextTask

log = logging.getLogger(__name__)

_COLLAPSED = 0.01
"""Spread below which features count as collapsed; a random network's spread is larger."""


class FeatureMonitor(Callback):
    """Log properties of the features of whole held-out photographs after each validation of a pretext.

    Logged are ``val/feature_std`` and ``val/effective_rank`` (:mod:`drgrade.metrics.functional`), and with
    ``knn`` the agreement of grades of held-out photographs with those of their nearest neighbours in the
    training subset: ``val/knn_qwk`` and ``val/knn_accuracy``. No weight, checkpoint or length of training
    depends on these grades, and grades of test photographs are not read.
    """

    def __init__(self, every: int = 1, knn: int | None = None) -> None:
        """Store the settings.

        Args:
            every: Epochs between two evaluations; the last validation is always evaluated.
            knn: Number of neighbours that vote on a grade; None for no neighbours.
        """
        self.every, self.knn = every, knn
        self._warned = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log; every process takes part."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, PretextTask) or not isinstance(data, PretextDataModule):
            return
        if trainer.sanity_checking or not self._due(trainer):
            return
        loader = data.whole_photographs("val")
        if loader is None:
            return
        encoder = pl_module.pretext.final_encoder(pl_module.encoder)
        features, _ = encode_photographs(encoder, loader, data, pl_module)
        found = self._neighbours(encoder, data, pl_module)
        if len(features) > 1:  # the spread of one photograph is not defined
            found |= {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
            self._warn(found["feature_std"], len(features))
        # All processes have computed the same values from the gathered features.
        pl_module.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=False)

    def _due(self, trainer: pl.Trainer) -> bool:
        # The last validation also counts if max_steps ends the run: the partial epoch after it has none.
        epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        last = trainer.global_step + epoch > trainer.estimated_stepping_batches
        return last or trainer.current_epoch % self.every == 0

    def _warn(self, spread: float, count: int) -> None:
        if spread < _COLLAPSED and not self._warned:
            self._warned = True
            log.warning(
                "the features of all %d held-out photographs are nearly the same (val/feature_std %.4f): the "
                "encoder has collapsed; lower pretext.optimizer.lr, or see docs/pretexts/README.md",
                count,
                spread,
            )

    def _neighbours(self, encoder: Encoder, data: PretextDataModule, task: PretextTask) -> dict[str, float]:
        train, val = (data.whole_photographs(subset, graded=True) for subset in ("train", "val"))
        if self.knn is None or train is None or val is None:
            return {}
        bank, known = encode_photographs(encoder, train, data, task)
        features, grades = encode_photographs(encoder, val, data, task)
        predicted = knn_shares(features, bank, known, min(self.knn, len(bank))).argmax(dim=1)
        return {
            "knn_qwk": float(quadratic_weighted_kappa(confusion_matrix(predicted, grades))),
            "knn_accuracy": float((predicted == grades).double().mean()),
        }


def encode_photographs(
    encoder: Encoder, loader: DataLoader[Any], data: PretextDataModule, task: PretextTask
) -> tuple[Tensor, Tensor]:
    """Encode photographs in evaluation mode and gather the features; every process must call.

    Args:
        encoder: The encoder.
        loader: Photographs.
        data: Data module that prepares the batches.
        task: Task with the device and type of the encoder.

    Returns:
        (N, D) float32 features and (N,) grades, -1 for none; on the CPU.
    """
    training = encoder.training
    encoder.eval()
    index, rows = [], []
    with torch.no_grad():
        for batch in loader:
            moved = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, task.device, 0), 0)
            features = encoder(moved["image"].to(task.dtype)).float()
            index.append(moved["index"])
            rows.append(torch.cat((features, moved["grade"][:, None].float()), dim=1))
    encoder.train(training)
    _, gathered = gather_rows(torch.cat(index), torch.cat(rows))
    return gathered[:, :-1], gathered[:, -1].long()
