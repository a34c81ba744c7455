"""Takes out of the output what is said at every start and helps nobody; by name, never wholesale."""

import logging
import warnings


def quieten() -> None:
    """Silence Lightning's notices about devices and checkpoints, and warnings about its own internals."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 asks torch >= 2.10 in a way that torch deprecates.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # On two cores the loader runs in the training process, where it is fastest; "auto" has chosen.
    warnings.filterwarnings("ignore", message=r".*does not have many workers")
    # A checkpoint is tested without the callbacks that have written it.
    warnings.filterwarnings(
        "ignore", message=r"Be aware that when using `ckpt_path`, callbacks used to create"
    )
    # A run that goes on in its folder (resume=) appends to the log of the same run.
    warnings.filterwarnings("ignore", message=r".*Checkpoint directory .* exists and is not empty")
    # Our metrics are computed from the gathered results, alike in every process: there is nothing to reduce.
    warnings.filterwarnings(
        "ignore", message=r"It is recommended to use `self.log\('(val|test)/.*sync_dist=True"
    )
    # Which processes there are drgrade finds out itself (training/together.py).
    warnings.filterwarnings("ignore", message=r"The `srun` command is available on your system")
