"""Results on one evaluated set and their figures: confusion matrix, curves per grade, worst photographs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from drgrade.data.photographs import Collection
from drgrade.metrics.distributed import Predictions
from drgrade.metrics.functional import confusion_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_MAX_POINTS = 200
"""Points of a curve; W&B draws at most 10,000 rows of a table."""

_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
"""Colours of the grades 0 to 4, safe for colour-blind readers (Okabe and Ito)."""

_COLUMNS = 4


@dataclass(frozen=True)
class GradeCurve:
    """A curve of one grade against the rest, with P points.

    Attributes:
        grade: The grade.
        x: (P,) in [0, 1].
        y: (P,) in [0, 1].
    """

    grade: int
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Mistake:
    """A photograph with a wrong predicted grade.

    Attributes:
        image_id: Name in the manifest.
        grade: True grade.
        predicted: Predicted grade.
        probabilities: (5,).
        image: (S, S, 3) uint8, from the store.
    """

    image_id: str
    grade: int
    predicted: int
    probabilities: Floats
    image: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """Results on one set.

    Attributes:
        name: ``val``, ``test`` or ``external/NAME``.
        predictions: Predictions on all its photographs.
        collection: Photographs whose rows the predictions name.
        step: Number of optimiser steps before the evaluation.
    """

    name: str
    predictions: Predictions
    collection: Collection
    step: int

    @cached_property
    def confusion(self) -> Counts:
        """(5, 5) counts; rows are the true grade."""
        counts: Counts = confusion_matrix(self.predictions.predicted, self.predictions.grades).numpy()
        return counts

    @cached_property
    def roc(self) -> list[GradeCurve]:
        """True against false positive rate, for each grade that some photographs have and some do not."""
        from sklearn.metrics import roc_curve

        def curve(truth: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
            false_positive, true_positive, _ = roc_curve(truth, scores)
            return false_positive, true_positive

        return self._curves(curve)

    @cached_property
    def precision_recall(self) -> list[GradeCurve]:
        """Precision against recall, for the same grades as :attr:`roc`."""
        from sklearn.metrics import precision_recall_curve

        def curve(truth: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
            precision, recall, _ = precision_recall_curve(truth, scores)
            return recall, precision

        return self._curves(curve)

    def worst(self, count: int) -> list[Mistake]:
        """Return the photographs with the largest error, ties by the probability of the true grade.

        Args:
            count: Maximum number; correct predictions are not included.

        Returns:
            Mistakes, the worst first.
        """
        found = self.predictions
        grades, predicted = found.grades.numpy(), found.predicted.numpy()
        probabilities = found.probabilities.double().numpy()
        distance = np.abs(predicted - grades)
        order = np.lexsort((probabilities[np.arange(len(grades)), grades], -distance))
        ids = self.collection.photographs["image_id"]
        return [
            Mistake(str(ids.iloc[row]), int(grades[k]), int(predicted[k]), probabilities[k], self._image(row))
            for k in order[:count]
            if distance[k]
            for row in [int(found.index[k])]
        ]

    def _curves(
        self, curve: Callable[[npt.NDArray[np.bool_], Floats], tuple[Floats, Floats]]
    ) -> list[GradeCurve]:
        grades = self.predictions.grades.numpy()
        probabilities = self.predictions.probabilities.double().numpy()
        found = []
        for grade in range(probabilities.shape[1]):
            truth = grades == grade
            if truth.any() and not truth.all():
                x, y = curve(truth, probabilities[:, grade])
                kept = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
                found.append(GradeCurve(grade, x[kept], y[kept]))
        return found

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        for store in self.collection.stores:
            if row < len(store):
                return np.array(store.images[row])
            row -= len(store)
        raise IndexError(row)


def draw_evaluation(evaluation: Evaluation, worst: int = 0) -> dict[str, "Figure"]:
    """Draw the figures of an evaluation.

    Args:
        evaluation: Results on one set.
        worst: Number of the worst photographs to show; not for validation.

    Returns:
        Figures by name: ``confusion``, ``roc``, ``precision_recall`` and, if requested, ``worst``.
    """
    drawn = {
        "confusion": _confusion(evaluation),
        "roc": _curves(evaluation.roc, "false positive rate", "true positive rate", evaluation.name),
        "precision_recall": _curves(evaluation.precision_recall, "recall", "precision", evaluation.name),
    }
    mistakes = evaluation.worst(worst) if evaluation.name != "val" else []
    return {**drawn, "worst": _photographs(mistakes)} if mistakes else drawn


def _begin(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _confusion(evaluation: Evaluation) -> "Figure":
    """Draw counts; the colour shows the share of the true grade."""
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _begin(4, 4)
    axes = figure.add_subplot(
        xlabel="predicted grade", ylabel="true grade", title=evaluation.name, xticks=range(5), yticks=range(5)
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        ink = "white" if shares[true, predicted] > 0.6 else "black"
        axes.text(predicted, true, str(count), ha="center", va="center", color=ink)
    return figure


def _curves(curves: Sequence[GradeCurve], x: str, y: str, title: str) -> "Figure":
    figure = _begin(4.5, 4)
    axes = figure.add_subplot(xlabel=x, ylabel=y, title=title, xlim=(0, 1), ylim=(0, 1.02))
    for curve in curves:
        axes.plot(curve.x, curve.y, color=_COLOURS[curve.grade], label=f"grade {curve.grade}")
    if curves:
        axes.legend(loc="lower right", frameon=False)
    return figure


def _photographs(mistakes: Sequence[Mistake]) -> "Figure":
    rows = -(-len(mistakes) // _COLUMNS)
    figure = _begin(2.2 * _COLUMNS, 2.6 * rows)
    for number, mistake in enumerate(mistakes, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        axes.imshow(mistake.image)
        axes.set_title(f"{mistake.image_id}\n{caption(mistake)}", fontsize=8)
        axes.set_axis_off()
    return figure


def caption(mistake: Mistake) -> str:
    """Describe a mistake in one line."""
    probability = mistake.probabilities[mistake.grade]
    return f"grade {mistake.grade} (p = {probability:.2f}), predicted {mistake.predicted}"
