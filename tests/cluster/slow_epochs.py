"""Callback that gives tests time to interrupt a run."""

import time
from typing import Any

from pytorch_lightning.callbacks import Callback


class SlowEpochs(Callback):
    """Sleeps after each epoch."""

    def __init__(self, seconds: float = 0.7) -> None:
        self._seconds = seconds

    def on_train_epoch_end(self, *_: Any) -> None:
        time.sleep(self._seconds)
