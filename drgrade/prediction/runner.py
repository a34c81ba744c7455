"""Batch loop of ``drgrade predict``: prepare, grade and record the inputs; resume an interrupted job."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from drgrade.data.crops import Crop
from drgrade.data.fundus_check import unreadable
from drgrade.data.preparation import PreparedPhotograph
from drgrade.errors import ConfigError
from drgrade.prediction.grader import Grader
from drgrade.prediction.inputs import InputFile, Inputs, InputState, file_state
from drgrade.prediction.job_state import ProgressDatabase
from drgrade.prediction.results import ProcessedFile, ResultWriter, make_row, split_batch
from drgrade.progress import track

REFERABLE_FROM = 0.5
"""P(grade >= 2) from which a photograph is referable unless a sensitivity is requested."""

Prepared = tuple[InputFile, InputState, PreparedPhotograph]


class BatchJob:
    """Grades the inputs of one command."""

    def __init__(
        self,
        grader: Grader,
        database: ProgressDatabase,
        threshold: float = REFERABLE_FROM,
        abstain: bool = True,
        batch_size: int = 16,
        workers: int | None = None,
    ) -> None:
        """Collect the parts of the job.

        Args:
            grader: Grades the prepared photographs.
            database: Stores the finished rows.
            threshold: P(grade >= 2) from which a photograph is referable.
            abstain: Do not grade photographs of insufficient quality.
            batch_size: Photographs per batch.
            workers: Processes that decode; None for one per CPU.
        """
        self._grader, self._database, self._threshold, self._abstain = grader, database, threshold, abstain
        self._batch_size, self._workers = batch_size, workers
        self._writers: Sequence[ResultWriter] = ()
        self._ungraded: list[ProcessedFile] = []
        self._finished = 0  # inputs since the last progress update

    def run(self, inputs: Inputs, writers: Sequence[ResultWriter]) -> None:
        """Grade all inputs that have no row yet.

        Args:
            inputs: Files to grade.
            writers: Receive every batch, and all rows at the end.

        Raises:
            DrgradeError: If a list cannot be read, a batch does not fit into memory, a worker process was
                killed, or rows cannot be written.
        """
        self._writers = writers
        for _ in track(self._steps(inputs), inputs.total, "grading", "photographs"):
            pass
        for writer in writers:
            writer.finish(self._database.rows())

    def _steps(self, inputs: Inputs) -> Iterator[None]:
        """Process the inputs; yield once per finished input."""
        batch: list[Prepared] = []
        for item, state, prepared in self._prepare(inputs):
            if prepared.crop.pixels is None or (prepared.verdict.abstains and self._abstain):
                self._add_ungraded(item, state, prepared)
            else:
                batch.append((item, state, prepared))
            if len(batch) == self._batch_size:
                self._record(self._grade(batch))
                batch = []
            yield from repeat(None, self._take_finished())
        self._record(self._grade(batch) if batch else [])
        yield from repeat(None, self._take_finished())

    def _prepare(self, inputs: Inputs) -> Iterator[Prepared]:
        """Prepare the inputs that have no row yet, a few at a time."""
        waiting: deque[tuple[InputFile, InputState]] = deque()
        paths = self._paths_to_open(inputs, waiting)
        for prepared in self._grader.preparation.prepare_all(paths, self._workers):
            yield (*waiting.popleft(), prepared)

    def _paths_to_open(self, inputs: Inputs, waiting: deque[tuple[InputFile, InputState]]) -> Iterator[Path]:
        """Yield the paths of files to open, and append the files to ``waiting``."""
        for item in inputs:
            state = InputState() if item.problem else file_state(item.path)
            if self._database.add_input(item, state):
                self._finished += 1
            elif item.problem or not state.opens:
                verdict = unreadable(item.problem or "not a regular file: a pipe, a socket or a device")
                self._add_ungraded(item, state, PreparedPhotograph(Crop(), verdict))
            else:
                waiting.append((item, state))
                yield Path(item.path)

    def _grade(self, batch: Sequence[Prepared]) -> list[ProcessedFile]:
        crops = [prepared.crop for _, _, prepared in batch]
        try:
            graded = self._grader.grade(np.stack([crop.pixels for crop in crops if crop.pixels is not None]))
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"batch_size={self._batch_size} does not fit into the memory of {self._grader.device}: set a "
                "smaller one; finished photographs are kept"
            ) from error
        return [
            ProcessedFile(make_row(item, prepared.verdict, prepared.crop.sha256, result), state, prepared)
            for (item, state, prepared), result in zip(
                batch, split_batch(graded, self._threshold), strict=True
            )
        ]

    def _add_ungraded(self, item: InputFile, state: InputState, prepared: PreparedPhotograph) -> None:
        """Collect files without a grade, because each transaction waits for the disk."""
        row = make_row(item, prepared.verdict, prepared.crop.sha256)
        self._ungraded.append(ProcessedFile(row, state, prepared))
        if len(self._ungraded) >= self._batch_size:
            self._record([])

    def _record(self, batch: Sequence[ProcessedFile]) -> None:
        """Pass a batch and the collected ungraded files to the writers, then store them."""
        batch, self._ungraded = [*self._ungraded, *batch], []
        for writer in self._writers:
            writer.add_batch(batch)
        self._database.write([(each.row, each.state) for each in batch])
        self._finished += len(batch)

    def _take_finished(self) -> int:
        finished, self._finished = self._finished, 0
        return finished
