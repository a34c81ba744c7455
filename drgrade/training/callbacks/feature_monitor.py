"""Watches what pre-training makes of the features: whether they collapse, and whether neighbours agree."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from drgrade.data.datamodules import PretextDataModule
from drgrade.metrics.distributed import gather_rows
from drgrade.metrics.functional import confusion_matrix, effective_rank, feature_std, quadratic_weighted_kappa
from drgrade.models.encoder import Encoder
from drgrade.models.probes import knn_shares
from drgrade.tasks.pretext import PretextTask

log = logging.getLogger(__name__)

_COLLAPSED = 0.01
"""Spread below which features are taken for collapsed; a random network's is above."""


class FeatureWatch(Callback):
    """Looks at the features of whole held-out photographs after each validation of a pretext.

    Logged are ``val/feature_std`` and ``val/effective_rank`` (:mod:`drgrade.metrics.functional`), and with
    ``knn`` how well the grades of held-out photographs are told by their nearest neighbours among those that
    pre-training learns from: ``val/knn_qwk``, ``val/knn_accuracy``. The neighbours' grades are used for that
    and for nothing else: no weight, no checkpoint and no length of training depends on them, and grades of
    test photographs are not looked at.
    """

    def __init__(self, every: int = 1, knn: int | None = None) -> None:
        """Say how closely to watch.

        Args:
            every: Epochs from one look to the next; the last validation is always looked at.
            knn: Neighbours that vote on a grade; None for no such probe.
        """
        self.every, self.knn = every, knn
        self._warned = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look, and log; every process takes part."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, PretextTask) or not isinstance(data, PretextDataModule):
            return
        if trainer.sanity_checking or not self._due(trainer):
            return
        loader = data.whole_photographs("val")
        if loader is None:
            return
        encoder = pl_module.pretext.final_encoder(pl_module.encoder)
        _, features, _ = _features(encoder, loader, data, pl_module)
        found = self._neighbours(encoder, data, pl_module)
        if len(features) > 1:  # one photograph has no spread; logged, 0 would say that all are alike
            found |= {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
            self._warn(found["feature_std"], len(features))
        # Every process has computed the same figures from the gathered features.
        pl_module.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=False)

    def _due(self, trainer: pl.Trainer) -> bool:
        # Also where the number of steps ends the run, within an epoch or after it: a part has no validation.
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
        loaders = [data.whole_photographs(subset, graded=True) for subset in ("train", "val")]
        if self.knn is None or loaders[0] is None or loaders[1] is None:
            return {}
        (_, bank, known), (_, asked, grades) = (
            _features(encoder, loader, data, task) for loader in loaders if loader is not None
        )
        predicted = knn_shares(asked, bank, known, min(self.knn, len(bank))).argmax(dim=1)
        return {
            "knn_qwk": float(quadratic_weighted_kappa(confusion_matrix(predicted, grades))),
            "knn_accuracy": float((predicted == grades).double().mean()),
        }


def _features(
    encoder: Encoder, loader: DataLoader[Any], data: PretextDataModule, task: PretextTask
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode photographs; all processes must call.

    Returns:
        (N,) rows in the manifest, (N, D) float32 features, (N,) grades, -1 for none; on the CPU.
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
    found, gathered = gather_rows(torch.cat(index), torch.cat(rows))
    return found, gathered[:, :-1], gathered[:, -1].long()
