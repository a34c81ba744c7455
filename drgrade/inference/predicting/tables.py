"""What a job leaves when it is done: predictions.csv and predictions.jsonl, and the counts of its summary."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from drgrade.files import writing
from drgrade.inference.predicting.job import Record
from drgrade.inference.predicting.rows import COLUMNS, STATUSES, Row


class Table:
    """Writes ``predictions.csv``, columns :data:`~drgrade.inference.predicting.rows.COLUMNS`."""

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
