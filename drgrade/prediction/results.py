"""Results of single files, and the writers of ``predictions.csv`` and ``predictions.jsonl``."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from drgrade.data.fundus_check import PreparedPhotograph, Verdict
from drgrade.errors import DataError
from drgrade.files import safe_cell, writing
from drgrade.models.thresholds import ReferralRule
from drgrade.prediction.grader import GradedBatch
from drgrade.prediction.inputs import InputFile, InputState

NOTICE = "For research only. Not a medical device: do not use it to diagnose or treat anybody."

Status = Literal["graded", "abstained", "failed"]
"""Graded; readable but not graded; not readable."""

STATUSES: tuple[Status, ...] = get_args(Status)

COLUMNS = (
    "path",
    "image_id",
    "status",
    "warning",
    "predicted",
    *(f"p{grade}" for grade in range(5)),
    "expected_grade",
    "p_referable",
    "referable",
    "threshold",
    "referral_rule",
    "uncertainty",
    "disagreement",
    "quality",
    "reason",
    "sha256",
)
"""Columns of predictions.csv, described in docs/predict.md."""

_DIGITS = 6  # as in the predictions.csv of a run


@dataclass(frozen=True)
class GradeResult:
    """Output of the grader for one photograph; numbers are rounded to six digits.

    Attributes:
        predicted: Grade, 0-4.
        probabilities: Calibrated probabilities of the five grades.
        uncalibrated: Probabilities as the heads output them.
        expected_grade: Mean of ``probabilities``, in [0, 4].
        p_referable: P(grade >= 2).
        referable: True if ``p_referable`` reaches the threshold.
        threshold: P(grade >= 2) from which a photograph is referable.
        uncertainty: Normalised entropy, in [0, 1].
        disagreement: Part of the uncertainty that is disagreement of members and views, in [0, 1].
        logits: Of a single model without test-time augmentation; None otherwise.
        referral_rule: Where the threshold comes from
            (:attr:`drgrade.models.thresholds.ReferralRule.origin`).
    """

    predicted: int
    probabilities: tuple[float, ...]
    uncalibrated: tuple[float, ...]
    expected_grade: float
    p_referable: float
    referable: bool
    threshold: float
    uncertainty: float
    disagreement: float
    logits: tuple[float, ...] | None = None
    referral_rule: str = ""


@dataclass(frozen=True)
class PredictionRow:
    """Result of one file.

    Attributes:
        path: Path of the file.
        image_id: See :class:`~drgrade.prediction.inputs.InputFile`.
        status: ``graded``, ``abstained`` or ``failed``.
        quality: Quality verdict, one of :data:`drgrade.data.fundus_check.FLAGS`.
        reason: Why there is no grade, or a caution; one line.
        sha256: SHA-256 of the file; empty if it could not be read.
        measures: Quality measures of the photograph.
        result: Output of the grader; None if the photograph was not graded.
    """

    path: str
    image_id: str
    status: Status
    quality: str = ""
    reason: str = ""
    sha256: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    result: GradeResult | None = None

    @property
    def grade(self) -> int | None:
        """Predicted grade, 0-4; None if the photograph was not graded."""
        return None if self.result is None else self.result.predicted

    @property
    def probabilities(self) -> tuple[float, ...] | None:
        """Calibrated probabilities of the five grades; None if the photograph was not graded."""
        return None if self.result is None else self.result.probabilities

    @property
    def uncertainty(self) -> float | None:
        """Normalised entropy of the probabilities, in [0, 1]; None if the photograph was not graded."""
        return None if self.result is None else self.result.uncertainty

    def content(self) -> str:
        """Serialise everything but path and image_id as JSON."""
        entries = asdict(self)
        del entries["path"], entries["image_id"]
        return json.dumps(entries)

    @classmethod
    def from_content(cls, path: str, image_id: str, content: str) -> "PredictionRow":
        """Restore a row from :meth:`content`; raise DataError if it is damaged."""
        try:
            entries = json.loads(content)
            result = entries.pop("result")
            return cls(path, image_id, **entries, result=None if result is None else GradeResult(**result))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"the stored result of {path} is damaged; overwrite=true starts again") from error

    def cells(self, warning: str = "") -> list[str]:
        """Return the cells of :data:`COLUMNS`; empty where there is no value."""
        entries = self.to_json(warning=warning)
        entries |= {f"p{grade}": p for grade, p in enumerate(self.probabilities or ())}
        return [_cell(entries.get(name)) for name in COLUMNS]

    def to_json(self, **more: object) -> dict[str, Any]:
        """Return an object of ``predictions.jsonl`` with further entries; missing values are None."""
        result = self.result
        return {
            "path": self.path,
            "image_id": self.image_id,
            "status": self.status,
            **(dict.fromkeys(GradeResult.__dataclass_fields__) if result is None else asdict(result)),
            "quality": self.quality,
            "measures": dict(self.measures),
            "reason": self.reason,
            "sha256": self.sha256,
            **more,
        }


@dataclass(frozen=True, eq=False)
class ProcessedFile:
    """Row of a file that has just been processed, its state before it was read, and its crop."""

    row: PredictionRow
    state: InputState
    prepared: PreparedPhotograph


def make_row(
    item: InputFile, verdict: Verdict, sha256: str, result: GradeResult | None = None
) -> PredictionRow:
    """Build the row of a file; see :class:`PredictionRow` for the arguments."""
    ungraded: Status = "failed" if verdict.flag == "unreadable" else "abstained"
    measures = {name: round(value, _DIGITS) for name, value in sorted(verdict.measures.items())}
    reason = " ".join(verdict.reason.split())
    status = ungraded if result is None else "graded"
    return PredictionRow(item.path, item.image_id, status, verdict.flag, reason, sha256, measures, result)


def split_batch(graded: GradedBatch, rule: ReferralRule) -> Iterator[GradeResult]:
    """Split the output of the grader for B photographs into results of single ones, in order."""
    referred = rule.refers(graded.referable)
    for i in range(len(graded)):
        yield GradeResult(
            int(graded.grades[i]),
            _rounded(graded.probabilities[i].tolist()),
            _rounded(graded.raw[i].tolist()),
            round(float(graded.expected[i]), _DIGITS),
            round(float(graded.referable[i]), _DIGITS),
            bool(referred[i]),
            round(rule.threshold, _DIGITS),
            round(float(graded.uncertainty[i]), _DIGITS),
            round(float(graded.disagreement[i]), _DIGITS),
            None if graded.logits is None else _rounded(graded.logits[i].tolist()),
            rule.origin,
        )


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{_DIGITS}f}" if isinstance(value, float) else str(safe_cell(value))


class ResultWriter:
    """Base class for the outputs of a prediction job."""

    def add_batch(self, batch: Sequence[ProcessedFile]) -> None:
        """Process a batch, in arbitrary order, while its pixels are in memory.

        A batch is recorded as done after all writers have processed it, so an interrupted batch is processed
        again. Writing it twice must give the same output.
        """

    def finish(self, rows: Iterable[PredictionRow]) -> None:
        """Write the final output from all rows, also earlier ones, in the order of the inputs."""


class CsvTable(ResultWriter):
    """Writes ``predictions.csv`` with the columns :data:`COLUMNS`; ``warning`` applies to all rows."""

    def __init__(self, folder: Path, warning: str = "") -> None:
        self.path, self._warning = folder / "predictions.csv", warning

    def finish(self, rows: Iterable[PredictionRow]) -> None:  # noqa: D102
        with writing(self.path) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(row.cells(self._warning) for row in rows)


class JsonLines(ResultWriter):
    """Writes ``predictions.jsonl``, one object per line, each with the provenance."""

    def __init__(self, folder: Path, provenance: Mapping[str, object], warning: str = "") -> None:
        self.path = folder / "predictions.jsonl"
        self._more = {"warning": warning, "provenance": dict(provenance)}

    def finish(self, rows: Iterable[PredictionRow]) -> None:  # noqa: D102
        with writing(self.path) as file:
            for row in rows:
                file.write(json.dumps(row.to_json(**self._more), allow_nan=False) + "\n")


class ResultCounts(ResultWriter):
    """Counts rows for the summary."""

    def __init__(self) -> None:
        self.rows = self.referable = self.newly = 0
        self.statuses: Counter[str] = Counter()
        self.abstained: Counter[str] = Counter()  # by quality flag
        self.cautions: Counter[str] = Counter()  # graded rows by quality flag, without good

    def add_batch(self, batch: Sequence[ProcessedFile]) -> None:  # noqa: D102
        self.newly += len(batch)

    def finish(self, rows: Iterable[PredictionRow]) -> None:  # noqa: D102
        for row in rows:
            self.rows += 1
            self.statuses[row.status] += 1
            self.referable += row.result is not None and row.result.referable
            if row.status == "abstained":
                self.abstained[row.quality] += 1
            elif row.status == "graded" and row.quality != "good":
                self.cautions[row.quality] += 1

    def to_json(self) -> dict[str, object]:
        """Return the counts of ``prediction.json``."""
        return {
            "rows": self.rows,
            **{status: self.statuses[status] for status in STATUSES},
            "referable": self.referable,
            "abstained_for": dict(sorted(self.abstained.items())),
            "graded_with_caution": dict(sorted(self.cautions.items())),
        }

    def summary(self, rule: ReferralRule) -> list[str]:
        """Return the summary lines for the terminal, with the referral decision."""
        earlier = f", {self.rows - self.newly} of them before" if self.rows > self.newly else ""
        lines = [
            f"{self.rows} photographs{earlier}",
            f"  {self.statuses['graded']} graded: {self.referable} referable"
            f"{_listed(self.cautions, 'with caution: ')}",
            f"  {rule.describe()}",
        ]
        if self.abstained:
            lines.append(f"  {self.statuses['abstained']} not graded{_listed(self.abstained)}")
        if self.statuses["failed"]:
            lines.append(f"  {self.statuses['failed']} could not be read: see the column reason")
        return lines


def _listed(counts: Mapping[str, int], prefix: str = "") -> str:
    listed = ", ".join(f"{count} {flag}" for flag, count in sorted(counts.items()))
    return f" ({prefix}{listed})" if listed else ""
