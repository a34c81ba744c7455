"""What there is to see of one evaluated set: confusion, curves per grade, the worst mistakes."""

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

_MOST_POINTS = 200
"""Of a curve: more cannot be seen, and W&B draws no more than 10 000 rows of a table."""


@dataclass(frozen=True)
class Curve:
    """A curve of one grade against the rest.

    Attributes:
        grade: Which.
        x: (P,) in [0, 1].
        y: (P,) in [0, 1].
    """

    grade: int
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Mistake:
    """A photograph that was graded badly.

    Attributes:
        image_id: Of the manifest.
        grade: The true one.
        predicted: What the model said.
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
        predictions: Of all its photographs.
        collection: Which they are rows of.
        step: Optimiser steps before it.
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
    def roc(self) -> list[Curve]:
        """False against true positive rate, of each grade that some photographs have and some have not."""
        from sklearn.metrics import roc_curve

        def curve(truth: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
            false_positive, true_positive, _ = roc_curve(truth, scores)
            return false_positive, true_positive

        return self._curves(curve)

    @cached_property
    def precision_recall(self) -> list[Curve]:
        """Recall against precision, of the same grades as :attr:`roc`."""
        from sklearn.metrics import precision_recall_curve

        def curve(truth: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
            precision, recall, _ = precision_recall_curve(truth, scores)
            return recall, precision

        return self._curves(curve)

    def worst(self, count: int) -> list[Mistake]:
        """The photographs whose grade is furthest off; of equal ones first the least probable true grade.

        Args:
            count: How many at most; correctly graded ones are none.

        Returns:
            The worst first.
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

    def _curves(self, curve: Callable[[npt.NDArray[np.bool_], Floats], tuple[Floats, Floats]]) -> list[Curve]:
        grades = self.predictions.grades.numpy()
        probabilities = self.predictions.probabilities.double().numpy()
        found = []
        for grade in range(probabilities.shape[1]):
            truth = grades == grade
            if truth.any() and not truth.all():
                x, y = curve(truth, probabilities[:, grade])
                kept = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int))
                found.append(Curve(grade, x[kept], y[kept]))
        return found

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        for store in self.collection.stores:
            if row < len(store):
                return np.array(store.images[row])
            row -= len(store)
        raise IndexError(row)


_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
"""Of the grades 0 to 4 (Okabe and Ito: told apart by the colour-blind too)."""

_COLUMNS = 4


def figures(evaluation: Evaluation, worst: int = 0) -> dict[str, "Figure"]:
    """Draw everything that there is to see.

    Args:
        evaluation: Of one set.
        worst: How many of the worst photographs to show; only of a test.

    Returns:
        Name: figure. ``confusion``, ``roc``, ``precision_recall``, and ``worst`` if it was asked for.
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
    """Counts, and the share of each true grade as the depth of the colour."""
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


def _curves(curves: Sequence[Curve], x: str, y: str, title: str) -> "Figure":
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
    """What is wrong with a photograph's grade, in a line."""
    probability = mistake.probabilities[mistake.grade]
    return f"grade {mistake.grade} (p = {probability:.2f}), predicted {mistake.predicted}"
