"""One row of predictions: what is said of one file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from drgrade.data.fundus_check import Verdict
from drgrade.prediction.grader import Graded
from drgrade.prediction.inputs import Item

Status = Literal["graded", "abstained", "failed"]
"""Graded; could be read and is not graded; could not be read."""

STATUSES: tuple[Status, ...] = get_args(Status)

COLUMNS = (
    "path",
    "image_id",
    "status",
    "predicted",
    *(f"p{grade}" for grade in range(5)),
    "expected_grade",
    "p_referable",
    "referable",
    "threshold",
    "uncertainty",
    "disagreement",
    "quality",
    "reason",
    "sha256",
)
"""Of predictions.csv; docs/predict.md says what each means."""

_DIGITS = 6
"""As in the predictions.csv of a run."""


@dataclass(frozen=True)
class Said:
    """What the grader says of one photograph; figures rounded to six digits.

    Attributes:
        predicted: The grade, 0-4.
        probabilities: Of the five grades, calibrated.
        uncalibrated: Of the five grades, as the heads give them.
        expected_grade: Mean of ``probabilities``.
        p_referable: P(grade >= 2).
        referable: Whether ``p_referable`` reaches the threshold.
        threshold: From which P(grade >= 2) on a photograph is referred.
        uncertainty: In [0, 1].
        disagreement: In [0, 1].
        logits: Of a single run without test-time augmentation.
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


@dataclass(frozen=True)
class Row:
    """What is said of one file.

    Attributes:
        path: Of the file.
        image_id: See :class:`~drgrade.prediction.inputs.Item`.
        status: Whether there is a grade.
        quality: The verdict in a word, a name of :data:`drgrade.data.fundus_check.FLAGS`.
        reason: Why there is no grade, or what to be cautious of; one line.
        sha256: Of the file's content; "" if it could not be read.
        measures: What was measured of the photograph's quality.
        said: By the grader; None without a grade.
    """

    path: str
    image_id: str
    status: Status
    quality: str = ""
    reason: str = ""
    sha256: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    said: Said | None = None

    def content(self) -> str:
        """All but path and image_id, as JSON; :meth:`read` takes it."""
        return json.dumps(
            {name: value for name, value in asdict(self).items() if name not in ("path", "image_id")}
        )

    @classmethod
    def read(cls, path: str, image_id: str, content: str) -> "Row":
        """Read back :meth:`content`.

        Args:
            path: Of the file.
            image_id: As the input has it now.
            content: As it was kept.
        """
        kept = json.loads(content)
        said = kept.pop("said")
        return cls(path, image_id, **kept, said=None if said is None else Said(**said))

    def cells(self) -> Iterator[str]:
        """As :data:`COLUMNS` of a CSV file; empty where there is nothing to say."""
        said = self.said
        yield from (self.path, self.image_id, self.status)
        if said is None:
            yield from [""] * 12
        else:
            yield str(said.predicted)
            yield from map(_decimal, (*said.probabilities, said.expected_grade, said.p_referable))
            yield from (str(said.referable).lower(), _decimal(said.threshold))
            yield from map(_decimal, (said.uncertainty, said.disagreement))
        yield from (self.quality, self.reason, self.sha256)

    def to_json(self, **more: object) -> dict[str, Any]:
        """As a line of predictions.jsonl; null where there is nothing to say.

        Args:
            **more: Further entries.
        """
        said = None if self.said is None else asdict(self.said)
        return {
            "path": self.path,
            "image_id": self.image_id,
            "status": self.status,
            **(said or dict.fromkeys(Said.__dataclass_fields__)),
            "quality": self.quality,
            "measures": dict(self.measures),
            "reason": self.reason,
            "sha256": self.sha256,
            **more,
        }


def ungraded(item: Item, verdict: Verdict, sha256: str) -> Row:
    """The row of a file that gets no grade.

    Args:
        item: The file.
        verdict: Why.
        sha256: Of its content, if it could be read.
    """
    status: Status = "failed" if verdict.flag == "unreadable" else "abstained"
    return Row(
        item.path, item.image_id, status, verdict.flag, _line(verdict.reason), sha256, _measures(verdict)
    )


def graded(item: Item, verdict: Verdict, sha256: str, said: Said) -> Row:
    """The row of a photograph with its grade.

    Args:
        item: The file.
        verdict: With a caution, or none.
        sha256: Of its content.
        said: By the grader.
    """
    reason = _line(verdict.reason)
    return Row(item.path, item.image_id, "graded", verdict.flag, reason, sha256, _measures(verdict), said)


def said_of(found: Graded, threshold: float) -> Iterator[Said]:
    """Tell the photographs of a batch apart.

    Args:
        found: What the grader says of B photographs.
        threshold: From which P(grade >= 2) on one is referred.

    Yields:
        B times, in their order.
    """
    for i in range(len(found)):
        yield Said(
            int(found.grades[i]),
            _rounded(found.probabilities[i].tolist()),
            _rounded(found.raw[i].tolist()),
            round(float(found.expected[i]), _DIGITS),
            round(float(found.referable[i]), _DIGITS),
            float(found.referable[i]) >= threshold,
            round(threshold, _DIGITS),
            round(float(found.uncertainty[i]), _DIGITS),
            round(float(found.disagreement[i]), _DIGITS),
            None if found.logits is None else _rounded(found.logits[i].tolist()),
        )


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values)


def _decimal(value: float) -> str:
    return f"{value:.{_DIGITS}f}"


def _measures(verdict: Verdict) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in sorted(verdict.measures.items())}


def _line(text: str) -> str:
    return " ".join(text.split())
