"""Run a function on two processes with the gloo backend."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch import multiprocessing as mp

WORLD = 2
# Processes are forked from a server that has imported slow modules, once for all tests of a worker.
multiprocessing.set_forkserver_preload(
    ["torch", "timm", "drgrade.models", "lightly.loss", "torchmetrics", "sklearn.metrics"]
)


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(rank, *arguments)`` on two processes.

    Args:
        function: Top-level function of a module, so that it can be pickled.
        *arguments: Picklable values.

    Returns:
        Results of the ranks: tensors, numbers, or lists and dictionaries of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), function, arguments)
        mp.start_processes(_process, arguments, nprocs=WORLD, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _process(rank: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()
