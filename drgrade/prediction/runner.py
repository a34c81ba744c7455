"""Grades photographs batch by batch, keeps every batch, and goes on where an earlier job was stopped."""

import csv
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from drgrade.data.crops import Crop
from drgrade.data.fundus_check import unreadable
from drgrade.data.preparation import Prepared
from drgrade.errors import ConfigError
from drgrade.files import writing
from drgrade.prediction.grader import Grader
from drgrade.prediction.inputs import Inputs, Item, State, state_of
from drgrade.prediction.progress_db import Ledger
from drgrade.prediction.rows import COLUMNS, STATUSES, Row, graded, said_of, ungraded
from drgrade.progress import track

REFERABLE_FROM = 0.5
"""P(grade >= 2) from which a photograph is referred where no sensitivity is asked for."""


@dataclass(frozen=True, eq=False)
class Record:
    """A file that has just been worked on.

    Attributes:
        row: What is said of it.
        state: Of the file before it was read.
        prepared: The crop that was graded, or why there is none; its pixels are those the model saw.
    """

    row: Row
    state: State
    prepared: Prepared


class Consumer(Protocol):
    """Makes something of what a job says: tables, overlays, a page."""

    def take(self, batch: Sequence[Record]) -> None:
        """Work on a batch while its pixels are there.

        The batch is kept only after all consumers have taken it: one that was interrupted is taken again,
        and one that is kept is never taken again. So what is written here has to be the same when written
        twice.

        Args:
            batch: Not in the order of the inputs: what could not be graded need not wait for a full batch.
        """

    def finish(self, rows: Iterable[Row]) -> None:
        """Close, when all is done.

        Args:
            rows: All rows in the order of the inputs, those of earlier jobs too. One at a time: there may be
                many.
        """


class Job:
    """Grades the inputs of one command."""

    def __init__(
        self,
        grader: Grader,
        ledger: Ledger,
        threshold: float = REFERABLE_FROM,
        abstain: bool = True,
        batch_size: int = 16,
        workers: int | None = None,
    ) -> None:
        """Bring together what is needed.

        Args:
            grader: Says the grades.
            ledger: Keeps the rows.
            threshold: From which P(grade >= 2) on a photograph is referred.
            abstain: Whether photographs that cannot be judged get no grade.
            batch_size: Photographs that are graded at a time.
            workers: Processes that decode; None for one per CPU.
        """
        self._grader, self._ledger, self._threshold, self._abstain = grader, ledger, threshold, abstain
        self._batch_size, self._workers = batch_size, workers
        self._consumers: Sequence[Consumer] = ()
        self._ungraded: list[Record] = []
        self._finished = 0  # inputs since progress was last shown

    def run(self, inputs: Inputs, consumers: Sequence[Consumer]) -> None:
        """Grade all inputs that have no row yet.

        Args:
            inputs: To be graded.
            consumers: Get every batch, and all rows in the end.

        Raises:
            DrgradeError: If a list cannot be read, a batch does not fit the device's memory, a worker process
                was killed, or rows cannot be written.
        """
        self._consumers = consumers
        for _ in track(self._steps(inputs), inputs.total, "grading", "photographs"):
            pass
        for consumer in consumers:
            consumer.finish(self._ledger.rows())

    def _steps(self, inputs: Inputs) -> Iterator[None]:
        """Work through the inputs; one step for each that is finished."""
        batch: list[tuple[Item, State, Prepared]] = []
        for item, state, prepared in self._prepared(inputs):
            verdict = prepared.verdict
            if prepared.crop.pixels is None or (verdict.abstains and self._abstain):
                self._put_aside(Record(ungraded(item, verdict, prepared.crop.sha256), state, prepared))
            else:
                batch.append((item, state, prepared))
            if len(batch) == self._batch_size:
                self._keep(self._grade(batch))
                batch = []
            yield from repeat(None, self._newly_finished())
        if batch:
            self._keep(self._grade(batch))
        self._keep([])
        yield from repeat(None, self._newly_finished())

    def _prepared(self, inputs: Inputs) -> Iterator[tuple[Item, State, Prepared]]:
        """Prepare what has no row yet; a few at a time are in memory."""
        waiting: deque[tuple[Item, State]] = deque()
        paths = self._paths(inputs, waiting)
        for prepared in self._grader.preparation.prepare_all(paths, self._workers):
            yield (*waiting.popleft(), prepared)

    def _paths(self, inputs: Inputs, waiting: deque[tuple[Item, State]]) -> Iterator[Path]:
        """Paths of the files that have to be opened; their items are put into ``waiting``."""
        for item in inputs:
            state = State() if item.problem else state_of(item.path)
            if self._ledger.expect(item, state):
                self._finished += 1
            elif item.problem or not state.opens:
                verdict = unreadable(
                    item.problem or "neither a file nor a folder: a pipe, a socket or a device"
                )
                self._put_aside(Record(ungraded(item, verdict, ""), state, Prepared(Crop(), verdict)))
            else:
                waiting.append((item, state))
                yield Path(item.path)

    def _grade(self, batch: Sequence[tuple[Item, State, Prepared]]) -> list[Record]:
        pixels = np.stack(
            [prepared.crop.pixels for _, _, prepared in batch if prepared.crop.pixels is not None]
        )
        try:
            found = self._grader.grade(pixels)
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"batch_size={self._batch_size} does not fit into the memory of {self._grader.device}: "
                "set a smaller one; what is graded is kept"
            ) from error
        return [
            Record(graded(item, prepared.verdict, prepared.crop.sha256, said), state, prepared)
            for (item, state, prepared), said in zip(batch, said_of(found, self._threshold), strict=True)
        ]

    def _put_aside(self, record: Record) -> None:
        """Keep what gets no grade some at a time: each time waits for the disk."""
        self._ungraded.append(record)
        if len(self._ungraded) >= self._batch_size:
            self._keep([])

    def _keep(self, batch: Sequence[Record]) -> None:
        """Hand a batch to the consumers, with what was put aside, and keep it."""
        batch, self._ungraded = [*self._ungraded, *batch], []
        for consumer in self._consumers:
            consumer.take(batch)
        self._ledger.write([(record.row, record.state) for record in batch])
        self._finished += len(batch)

    def _newly_finished(self) -> int:
        finished, self._finished = self._finished, 0
        return finished


class Table:
    """Writes ``predictions.csv``, columns :data:`~drgrade.prediction.rows.COLUMNS`."""

    def __init__(self, folder: Path) -> None:
        """Say where.

        Args:
            folder: Of the results.
        """
        self.path = folder / "predictions.csv"

    def take(self, batch: Sequence[Record]) -> None:
        """Nothing to do: the table is written when all is done."""

    def finish(self, rows: Iterable[Row]) -> None:
        """Write the table.

        Args:
            rows: In the order of the inputs.
        """
        with writing(self.path) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(row.cells() for row in rows)


class JsonLines:
    """Writes ``predictions.jsonl``, an object per line."""

    def __init__(self, folder: Path, provenance: Mapping[str, object]) -> None:
        """Say where.

        Args:
            folder: Of the results.
            provenance: Goes into every line.
        """
        self.path = folder / "predictions.jsonl"
        self._provenance = dict(provenance)

    def take(self, batch: Sequence[Record]) -> None:
        """Nothing to do: the lines are written when all is done."""

    def finish(self, rows: Iterable[Row]) -> None:
        """Write the lines.

        Args:
            rows: In the order of the inputs.
        """
        with writing(self.path) as file:
            for row in rows:
                file.write(json.dumps(row.to_json(provenance=self._provenance), allow_nan=False) + "\n")


class Tally:
    """Counts.

    Attributes:
        rows: All.
        statuses: Rows of each status.
        referable: Rows that are referred.
        abstained: Rows that are abstained from, by flag.
        cautions: Graded rows that are not flagged good, by flag.
        newly: Of the rows, those that this job has worked on.
    """

    def __init__(self) -> None:
        self.rows = self.referable = self.newly = 0
        self.statuses: Counter[str] = Counter()
        self.abstained: Counter[str] = Counter()
        self.cautions: Counter[str] = Counter()

    def take(self, batch: Sequence[Record]) -> None:
        """Count what is done.

        Args:
            batch: Of it.
        """
        self.newly += len(batch)

    def finish(self, rows: Iterable[Row]) -> None:
        """Count what there is.

        Args:
            rows: All.
        """
        for row in rows:
            self.rows += 1
            self.statuses[row.status] += 1
            self.referable += row.said is not None and row.said.referable
            if row.status == "abstained":
                self.abstained[row.quality] += 1
            elif row.status == "graded" and row.quality != "good":
                self.cautions[row.quality] += 1

    def counts(self) -> dict[str, object]:
        """As ``prediction.json`` holds them."""
        return {
            "rows": self.rows,
            **{status: self.statuses[status] for status in STATUSES},
            "referable": self.referable,
            "abstained_for": dict(sorted(self.abstained.items())),
            "graded_with_caution": dict(sorted(self.cautions.items())),
        }

    def lines(self, threshold: float) -> list[str]:
        """The summary in words.

        Args:
            threshold: From which P(grade >= 2) on a photograph is referred.
        """
        graded = self.statuses["graded"]
        before = f", {self.rows - self.newly} of them before" if self.rows > self.newly else ""
        lines = [
            f"{self.rows} photographs{before}",
            f"  {graded} graded: {self.referable} referable (P(grade >= 2) at least {threshold:.3g})"
            + _listed(self.cautions, "with caution: "),
        ]
        if self.abstained:
            lines.append(f"  {self.statuses['abstained']} not graded" + _listed(self.abstained))
        if self.statuses["failed"]:
            lines.append(f"  {self.statuses['failed']} could not be read: see the column reason")
        return lines


def _listed(counts: Mapping[str, int], before: str = "") -> str:
    if not counts:
        return ""
    return f" ({before}{', '.join(f'{count} {flag}' for flag, count in sorted(counts.items()))})"
