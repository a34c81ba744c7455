"""What an optimiser step costs through drgrade, against a bare PyTorch loop on the same batches.

One side is `train()`, the function behind train.py, with its Lightning trainer, loading, augmentation,
callbacks and logging (logger=csv): each epoch is one block of steps, timed from its start, so that loading the
first batch counts, to the end of its last step. The other side is zero_grad, forward, loss, backward and step
over the batches of that block, which are in memory by then, with copies of the encoder and the head and the
same optimiser. The blocks alternate; reported are medians, without the first block.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from drgrade.cli.app import CONF
from drgrade.tasks import GradingTask
from drgrade.training.run import train


class BareLoop:
    """The same training without anything around it."""

    def __init__(self, task: GradingTask, precision: str) -> None:
        self.encoder, self.head = copy.deepcopy(task.encoder), copy.deepcopy(task.head)
        self.optimizer = task._optimizer([*self.encoder.parameters(), *self.head.parameters()])
        self.autocast = precision == "bf16-mixed"

    def run(self, batches: Sequence[dict[str, Any]]) -> float:
        """Train on the batches; returns seconds per step."""
        self.encoder.train()
        self.head.train()
        start = time.perf_counter()
        for batch in batches:
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = self.head.loss(self.head(self.encoder(batch["image"])).float(), batch["grade"])
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return (time.perf_counter() - start) / len(batches)


class Alternate(Callback):
    """Times every epoch of a training, and lets bare loops do the same between epochs."""

    def __init__(self, bare: Sequence[str]) -> None:
        """Take the precisions of the bare loops; the first is the training's own."""
        self.names = ["through train()", *(f"bare loop, {precision}" for precision in bare)]
        self.precisions, self.loops = bare, list[BareLoop]()
        self.blocks: list[list[float]] = []
        self.batches: list[dict[str, Any]] = []
        self.started = self.stopped = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the untrained parts."""
        assert isinstance(pl_module, GradingTask)
        self.loops = [BareLoop(pl_module, precision) for precision in self.precisions]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.batches = []
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch, and the time so far."""
        self.batches.append(batch)
        self.stopped = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the bare loops have their turn."""
        own = (self.stopped - self.started) / len(self.batches)
        self.blocks.append([own, *(loop.run(self.batches) for loop in self.loops)])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the result."""
        counted = self.blocks[1:]
        print(f"trainer.precision={trainer.precision}: {len(counted)} blocks of {len(self.batches)} steps")
        for side, name in enumerate(self.names):
            milliseconds = 1000 * statistics.median(block[side] for block in counted)
            ratios = [block[0] / block[side] for block in counted]
            print(f"  {name:24} {milliseconds:8.1f} ms/step", end="")
            print(f"   train() is {statistics.median(ratios):.3f} of it", end=" ")
            print(f"({min(ratios):.3f} - {max(ratios):.3f})")


def compose(arguments: argparse.Namespace, precision: str, bare: Sequence[str], folder: Path) -> DictConfig:
    """Config of one training: train.py's, and the callback of this file."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(
            "train",
            [
                "data=demo",
                f"data.image_size={arguments.size}",
                f"encoder={arguments.encoder}",
                "init=random",
                "logger=csv",
                "trainer=cpu",
                f"trainer.precision={precision}",
                f"trainer.max_epochs={arguments.blocks + 1}",
                f"protocol.steps_per_epoch={arguments.steps}",
                "protocol.frozen_epochs=0",
                f"paths.run={folder}",
                "+callbacks.alternate._target_=__main__.Alternate",
                f"+callbacks.alternate.bare=[{','.join(bare)}]",
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="densenet121")
    parser.add_argument("--size", type=int, default=96, help="side of the images in px")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of a block")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--no-bf16", action="store_true", help="leave out trainer.precision=bf16-mixed")
    arguments = parser.parse_args()
    trainings = [("32-true", ["32-true"])]
    if not arguments.no_bf16:
        trainings.append(("bf16-mixed", ["bf16-mixed", "32-true"]))
    for precision, bare in trainings:
        with tempfile.TemporaryDirectory() as folder:
            train(compose(arguments, precision, bare, Path(folder)))


if __name__ == "__main__":
    main()
