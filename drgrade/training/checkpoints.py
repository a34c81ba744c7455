"""Read and write checkpoints so that a kill or a full disk leaves the previous one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from drgrade.errors import DataError
from drgrade.files import checkpoint_fault, replacing


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint beside its target and rename it.

    Raises:
        OSError: If it cannot be written.
    """
    # With a path instead of an open file, torch raises a RuntimeError without the cause.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoint files, staged in their own folder.

    Lightning stages a checkpoint in ``$TMPDIR`` and moves it. From another file system, a move is a copy over
    the last good checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """See :func:`save_checkpoint`; there are no ``storage_options``."""
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options} has no effect on local files")
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *arguments: Any, **more: Any) -> dict[str, Any]:
        """Load a checkpoint after its checksums have been compared.

        Raises:
            DataError: If it is damaged.
        """
        fault = checkpoint_fault(Path(path))
        if fault is not None:
            raise DataError(f"{path} is damaged ({fault}); train again without resume=")
        content: dict[str, Any] = super().load_checkpoint(path, *arguments, **more)
        return content
