"""Filters for known, harmless warnings, each selected by its text."""

import logging
import warnings

_HARMLESS = (
    # Lightning 2.6 calls torch >= 2.10 in a way that torch deprecates.
    r".*isinstance\(treespec, LeafSpec\)",
    # On two cores, loading is fastest in the training process; num_workers=auto has chosen that.
    r".*does not have many workers",
    # A checkpoint is tested without the callbacks that have written it.
    r"Be aware that when using `ckpt_path`, callbacks used to create",
    # A resumed run writes into its own folder.
    r".*Checkpoint directory .* exists and is not empty",
    # Metrics are computed from results that are already gathered from all processes.
    r"It is recommended to use `self.log\('(val|test)/.*sync_dist=True",
    # drgrade.training.distributed detects the processes itself.
    r"The `srun` command is available on your system",
)


def silence_known_warnings() -> None:
    """Silence Lightning's notices about devices and checkpoints, and known, harmless warnings."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
