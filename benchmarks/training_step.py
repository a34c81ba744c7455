"""Measure the time of an optimiser step through drgrade against a bare PyTorch loop on the same batches.

The first is ``train()``, the function behind train.py, with its Lightning trainer, loading, augmentation,
callbacks and logging (logger=csv). The time of a step runs from the end of the previous one, or from the
start of the epoch, so that loading its batch is included. The second is zero_grad, forward, loss, backward
and step on that batch, which is in memory by then, with copies of the encoder and the head and the same
optimiser. The two take turns step by step, so that other load on the machine affects both. Medians are
reported.

    python benchmarks/training_step.py                            # on an idle machine
    python benchmarks/training_step.py --threads 1 --cpu-time     # on a busy one

On a busy machine several threads that wait for each other can take ten times as long, in either loop.
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from common import make_parser
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from drgrade.config import CONF
from drgrade.tasks import GradingTask
from drgrade.training.run import train

Clock = Callable[[], float]

STEPS_PER_EPOCH = 10
WARM_UP = 5
"""Steps that are not counted."""


class BareLoop:
    """The same optimiser steps in plain PyTorch."""

    def __init__(self, task: GradingTask, precision: str, clock: Clock) -> None:
        self.clock = clock
        self.encoder, self.head = copy.deepcopy(task.encoder).train(), copy.deepcopy(task.head).train()
        self.optimizer = task._optimizer([*self.encoder.parameters(), *self.head.parameters()])
        self.autocast = precision == "bf16-mixed"

    def step(self, batch: dict[str, Any]) -> float:
        """Train on one batch and return the seconds."""
        start = self.clock()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            logits = self.head(self.encoder(batch["image"]))
            loss = self.head.loss(logits.float(), batch["grade"])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return self.clock() - start


class TakeTurns(Callback):
    """Callback that times every step of a training and then the same step of the bare loops."""

    def __init__(self, bare: Sequence[str], cpu_time: bool) -> None:
        """Set the precisions of the bare loops and the clock."""
        self.clock: Clock = time.process_time if cpu_time else time.perf_counter
        self.precisions, self.loops = bare, list[BareLoop]()
        self.seconds: list[list[float]] = []
        self.since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the untrained modules."""
        assert isinstance(pl_module, GradingTask)
        self.loops = [BareLoop(pl_module, precision, self.clock) for precision in self.precisions]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock, which leaves out validation and checkpoints."""
        self.since = self.clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, run the bare loops, and restart the clock."""
        own = self.clock() - self.since
        self.seconds.append([own, *(loop.step(batch) for loop in self.loops)])
        self.since = self.clock()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the medians and the ratios."""
        counted = self.seconds[WARM_UP:]
        print(
            f"trainer.precision={trainer.precision}, {len(counted)} steps, {torch.get_num_threads()} threads"
        )
        print(f"  {'train()':24} {1000 * statistics.median(row[0] for row in counted):8.1f} ms/step")
        for side, precision in enumerate(self.precisions, start=1):
            milliseconds = 1000 * statistics.median(row[side] for row in counted)
            first, ratio, third = statistics.quantiles((row[0] / row[side] for row in counted), n=4)
            print(f"  {'bare loop, ' + precision:24} {milliseconds:8.1f} ms/step; train() / this", end=" ")
            print(f"{ratio:.3f} (quartiles {first:.3f} - {third:.3f})", flush=True)


def compose(arguments: argparse.Namespace, precision: str, bare: Sequence[str], folder: Path) -> DictConfig:
    """Compose the config of one training, with the callback of this file."""
    epochs = -(-(arguments.steps + WARM_UP) // STEPS_PER_EPOCH)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(
            "train",
            [
                "data=demo",
                f"data.count={arguments.count}",
                f"paths.outputs={folder}/outputs",
                f"data.image_size={arguments.size}",
                f"encoder={arguments.encoder}",
                "init=random",
                "logger=csv",
                "trainer=cpu",
                f"trainer.precision={precision}",
                f"trainer.max_epochs={epochs}",
                f"protocol.steps_per_epoch={STEPS_PER_EPOCH}",
                "protocol.frozen_epochs=0",
                f"paths.run={folder}",
                "+callbacks.take_turns._target_=__main__.TakeTurns",
                f"+callbacks.take_turns.bare=[{','.join(bare)}]",
                f"+callbacks.take_turns.cpu_time={arguments.cpu_time}",
            ],
        )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--encoder", default="densenet121")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--count", type=int, default=400, help="number of demo photographs")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps that are counted")
    parser.add_argument("--threads", type=int, help="threads of PyTorch; default: one per core")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU time of the process, not wall-clock time"
    )
    parser.add_argument("--only", choices=["32-true", "bf16-mixed"], help="measure one precision, not both")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for precision, bare in (("32-true", ["32-true"]), ("bf16-mixed", ["bf16-mixed", "32-true"])):
        if arguments.only in (None, precision):
            with tempfile.TemporaryDirectory() as folder:
                train(compose(arguments, precision, bare, Path(folder)))


if __name__ == "__main__":
    main()
