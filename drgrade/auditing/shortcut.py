"""Shortcut probe: prediction of the grade without the retina.

A small model predicts the grade in cross-validation from six numbers of a photograph (:data:`FEATURES`) that
do not depend on the structure of the retina. A network can use the same differences between cameras and
clinics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from drgrade.auditing.findings import Finding
from drgrade.data.splits.split import groups_of
from drgrade.grades import NUM_GRADES
from drgrade.settings import AuditThresholds
from drgrade.stats.bootstrap import kappas

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Folds = Sequence[tuple[Ints, Ints]]
"""(training rows, test rows) of each fold."""

FEATURES = ("width", "height", "aspect", "file_size", "border", "brightness")
"""Inputs of the probe. Border: share outside the disc. Brightness: mean over the whole photograph."""

SIGNIFICANT = 0.05

_FEWEST, _FEWEST_OF_GRADE = 50, 10
_SHUFFLES = 5  # of each feature, for its importance


@dataclass(frozen=True)
class Probe:
    """Result of the shortcut probe on one data set.

    Attributes:
        dataset: Name of the data set.
        photographs: Number of graded photographs used.
        skipped: Reason why there is no result; "" if there is one. Other values are then NaN or empty.
        qwk: QWK with all features over all test folds.
        low: Lower end of the 95 % interval (percentile bootstrap over groups).
        high: Upper end of the interval.
        chance: Mean QWK with shuffled grades.
        chance_high: 95th percentile of QWK with shuffled grades.
        p_value: Permutation p-value.
        single: QWK with each feature alone; 0 for constant features.
        importance: Decrease of QWK when a feature is shuffled within the test folds.
        constant: Constant features.
        left_out: Grades with too few photographs.
    """

    dataset: str
    photographs: int
    skipped: str = ""
    qwk: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    chance: float = float("nan")
    chance_high: float = float("nan")
    p_value: float = float("nan")
    single: dict[str, float] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """Result as a sentence."""
        if self.skipped:
            return f"{self.dataset}: no shortcut probe, {self.skipped}"
        qwk, low, high = (
            f"{round(value, 2) + 0.0:.2f}" for value in (self.qwk, self.low, self.high)
        )  # no -0.00
        figures = f"{qwk} (95 % interval {low} to {high})"
        result = f"{self.dataset}: the probe reaches a QWK of {figures} without the retina"
        if self.p_value > SIGNIFICANT:
            return f"{result}, which is not more than chance (p = {self.p_value:.2f})"
        feature = max(self.importance, key=lambda name: self.importance[name]).replace("_", " ")
        return f"{result}; chance is 0 (p = {self.p_value:.3f}). The most important feature is {feature}"


def probe(manifest: pd.DataFrame, settings: AuditThresholds) -> Probe:
    """Run the shortcut probe on one data set.

    Gradient-boosted trees regress the grade. Predictions are converted to grades by rank, so that grades are
    as frequent in every test fold as in its training folds; rounding would favour middle grades. Folds are
    stratified by grade and keep groups (patients, copies) together.

    Args:
        manifest: Rows of one data set in the manifest of a collection.
        settings: Settings of the probe.
    """
    import sklearn.ensemble  # noqa: F401 - the limit holds for libraries that are loaded already
    from threadpoolctl import threadpool_limits

    # Such small models are slower on several threads.
    with threadpool_limits(limits=1):
        return _probe(manifest, settings)


def _probe(manifest: pd.DataFrame, settings: AuditThresholds) -> Probe:
    dataset = str(manifest["dataset"].iloc[0]) if len(manifest) else ""
    graded = _sample(manifest[manifest["grade"].notna()], settings)
    counts = graded["grade"].value_counts()
    rare = tuple(sorted(int(grade) for grade in counts.index if counts[grade] < _FEWEST_OF_GRADE))
    graded = graded[~graded["grade"].isin(rare)]
    reason = _reason_to_skip(graded, settings.folds)
    if reason:
        return Probe(dataset, len(graded), skipped=reason, left_out=rare)
    features = _features(graded)
    varying = [name for name in FEATURES if np.ptp(features[name].to_numpy()) > 0]
    constant = tuple(name for name in FEATURES if name not in varying)
    grades = graded["grade"].to_numpy(dtype=np.int64)
    groups = _group_numbers(graded)
    folds = _folds(grades, groups, settings)
    values = features[varying].to_numpy(dtype=float)
    models = _fit(values, grades, folds, settings.seed)
    predicted = _predict(models, values, grades, folds)
    qwk = kappa(grades, predicted)
    low, high = _interval(grades, predicted, groups, settings)
    single = {
        name: _cross_validated(features[[name]].to_numpy(dtype=float), grades, folds, settings.seed)
        for name in varying
    }
    chance = _chance(values, grades, groups, folds, settings)
    return Probe(
        dataset,
        len(graded),
        qwk=qwk,
        low=low,
        high=high,
        chance=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.95)),
        p_value=float((1 + (chance >= qwk).sum()) / (1 + len(chance))),
        single=dict.fromkeys(FEATURES, 0.0) | single,
        importance=_importances(models, values, grades, folds, varying, settings.seed),
        constant=constant,
        left_out=rare,
    )


def probe_findings(probes: Sequence[Probe], settings: AuditThresholds) -> Iterator[Finding]:
    """Report data sets whose probe reaches a large and significant QWK."""
    for result in probes:
        if result.qwk >= settings.shortcut_above and result.p_value <= SIGNIFICANT:
            yield Finding("shortcut", dataset=result.dataset, detail=result.sentence)


def kappa(grades: Ints, predicted: Ints, weights: Floats | None = None) -> float:
    """Compute the quadratic weighted kappa of grades (N,); ``weights`` (N,) count each photograph."""
    confusion = np.bincount(NUM_GRADES * grades + predicted, weights, NUM_GRADES**2)
    return float(kappas(confusion.reshape(NUM_GRADES, NUM_GRADES)))


def _sample(graded: pd.DataFrame, settings: AuditThresholds) -> pd.DataFrame:
    """Return all photographs, or random groups of them up to the largest number."""
    if len(graded) <= settings.probe_photographs:
        return graded
    groups = _group_numbers(graded)
    turn = np.random.default_rng(settings.seed).permutation(int(groups.max()) + 1)[groups]
    order = np.argsort(turn, kind="stable")[: settings.probe_photographs]
    return graded.iloc[np.sort(order)]


def _group_numbers(graded: pd.DataFrame) -> Ints:
    """Return the number of the group of each photograph, (N,) from 0."""
    return np.unique(groups_of(graded).to_numpy(dtype=str), return_inverse=True)[1].astype(np.int64)


def _reason_to_skip(graded: pd.DataFrame, folds: int) -> str:
    if len(graded) < _FEWEST:
        usable = f"grades with {_FEWEST_OF_GRADE} or more"
        return f"{_FEWEST} photographs of {usable} are needed, there are {len(graded)}"
    if graded["grade"].nunique() < 2:
        return f"there are not two grades with {_FEWEST_OF_GRADE} photographs each"
    groups = groups_of(graded).nunique()
    return f"{groups} groups for {folds} folds" if groups < 2 * folds else ""


def _features(graded: pd.DataFrame) -> pd.DataFrame:
    numbers = graded[["width", "height", "file_size", "border", "brightness"]].astype("float64")
    return numbers.assign(aspect=numbers["width"] / numbers["height"])[list(FEATURES)]


def _folds(grades: Ints, groups: Ints, settings: AuditThresholds) -> Folds:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(settings.folds, shuffle=True, random_state=settings.seed)
    folds = splitter.split(np.zeros(len(grades)), grades, groups)
    return [(train, test) for train, test in folds if len(train) and len(test)]


def _fit(values: Floats, grades: Ints, folds: Folds, seed: int) -> list["HistGradientBoostingRegressor"]:
    """Fit a model for each fold; none without features."""
    if values.shape[1] == 0:
        return []
    from sklearn.ensemble import HistGradientBoostingRegressor

    return [
        HistGradientBoostingRegressor(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=10, early_stopping=False, random_state=seed
        ).fit(values[train], grades[train])
        for train, _ in folds
    ]


def _predict(
    models: list["HistGradientBoostingRegressor"], values: Floats, grades: Ints, folds: Folds
) -> Ints:
    """Predict the grade of each photograph with the model of its test fold."""
    predicted = np.zeros(len(grades), np.int64)
    for number, (train, test) in enumerate(folds):
        scores = models[number].predict(values[test]) if models else np.zeros(len(test))
        predicted[test] = grades_by_rank(scores, grades[train])
    return predicted


def grades_by_rank(scores: Floats, training_grades: Ints) -> Ints:
    """Convert scores to grades with the frequencies of the training grades; equal scores get one grade."""
    shares = np.cumsum(np.bincount(training_grades, minlength=NUM_GRADES)) / len(training_grades)
    ranks = (rankdata(scores) - 0.5) / len(scores)
    return np.searchsorted(shares[:-1], ranks, side="right").astype(np.int64)


def _cross_validated(values: Floats, grades: Ints, folds: Folds, seed: int) -> float:
    return kappa(grades, _predict(_fit(values, grades, folds, seed), values, grades, folds))


def _interval(grades: Ints, predicted: Ints, groups: Ints, settings: AuditThresholds) -> tuple[float, float]:
    """Return the 95 % interval from a bootstrap over groups, whose photographs are not independent."""
    rng = np.random.default_rng(settings.seed)
    number = int(groups.max()) + 1
    draws = (
        np.bincount(rng.integers(number, size=number), minlength=number) for _ in range(settings.resamples)
    )
    drawn = [kappa(grades, predicted, times[groups].astype(float)) for times in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _chance(values: Floats, grades: Ints, groups: Ints, folds: Folds, settings: AuditThresholds) -> Floats:
    """Return the QWK of each repeat with shuffled grades in the same folds."""
    rng = np.random.default_rng(settings.seed)
    repeats = (shuffle_groups(grades, groups, rng) for _ in range(settings.permutations))
    return np.array([_cross_validated(values, shuffled, folds, settings.seed) for shuffled in repeats])


def shuffle_groups(grades: Ints, groups: Ints, rng: np.random.Generator) -> Ints:
    """Exchange the grades (N,) of whole groups (N,) with those of groups of the same size.

    Grades of a patient are similar; shuffling single photographs would underestimate the spread under chance
    (whole-block exchangeability, Winkler et al. 2015, doi 10.1016/j.neuroimage.2015.05.092).
    """
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    shuffled = grades.copy()
    for size in np.unique(sizes[sizes > 0]):
        members = order[starts[sizes == size][:, None] + np.arange(size)]  # (groups of this size, size)
        shuffled[members] = grades[rng.permutation(members)]
    return shuffled


def _importances(
    models: list["HistGradientBoostingRegressor"],
    values: Floats,
    grades: Ints,
    folds: Folds,
    varying: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """Return the mean decrease of QWK when a feature is shuffled in the test folds (Breiman 2001)."""
    whole = kappa(grades, _predict(models, values, grades, folds))
    rng = np.random.default_rng(seed)
    decreases = dict.fromkeys(FEATURES, 0.0)
    for column, name in enumerate(varying):
        remaining = []
        for _ in range(_SHUFFLES):
            shuffled = values.copy()
            for _, test in folds:
                shuffled[test, column] = rng.permutation(values[test, column])
            remaining.append(kappa(grades, _predict(models, shuffled, grades, folds)))
        decreases[name] = whole - float(np.mean(remaining))
    return decreases
