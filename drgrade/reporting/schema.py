"""Data of a report: computed by :mod:`drgrade.reporting.study`, formatted by the writers.

A *method* comprises everything that its runs have in common: encoder, pretext, initial weights, head,
protocol and all other settings except label fraction, fold and seeds. A *row* is a method at a label
fraction. Results are averaged over the *folds* of a row; several seeds and label draws of a fold are averaged
first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase

from drgrade.stats.curves import ReliabilityCurve, RocCurve
from drgrade.stats.estimates import Counts, Estimate, Range
from drgrade.stats.formatting import MINUS, fraction
from drgrade.stats.selective import RiskCoverage

SplitKey = tuple[str, float, int, str]
"""Protocol, label fraction, label seed and fold."""


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        key: Unique and stable identifier, from the settings; safe in file names.
        label: Display name, as short as the other methods of the report allow.
        protocol: Name of the protocol; if several protocols of a report share it, with the settings that
            distinguish them: ``published (epochs=5)``.
        init: ``random``, ``imagenet``, ``ssl``, a path, or the names of the files with the first weights.
        settings: Settings that differ between methods of the report, apart from ``method``, ``init`` and
            ``protocol.name``: ``head: CornHead`` for a class, ``protocol.epochs: 20`` for others.
        saw_test: Pre-training used the test photographs, without grades; None if unknown.
        line: Display name without the protocol; empty if equal to ``label``.
        pretext: Name of the pretext; empty if there is none or it is unknown.
        reference: Key of the method that it is compared with; empty if there is none.
    """

    key: str
    label: str
    protocol: str
    init: str
    settings: Mapping[str, object]
    saw_test: bool | None
    line: str = ""
    pretext: str = ""
    reference: str = ""

    @property
    def name(self) -> str:
        """Display name without the protocol."""
        return self.line or self.label

    @property
    def pretraining_remark(self) -> str:
        """Remark on the use of test photographs in pre-training; empty if they were not used."""
        if self.saw_test is None:
            return "unknown whether pre-training used the test photographs"
        return "pre-training used the test photographs, without their grades" if self.saw_test else ""


@dataclass(frozen=True)
class Change:
    """A metric before and after calibration, mean over the folds.

    The difference is after minus before; its interval is from the paired bootstrap.
    """

    before: float
    after: float
    difference: Estimate


@dataclass(frozen=True)
class Reached:
    """Test results of an operating point for referable DR, over the photographs of all folds.

    Attributes:
        target: Sensitivity that was required on the validation photographs.
        threshold: Calibrated P(grade >= 2) above which a photograph is referred, over the runs.
        sensitivity: NaN if there are no photographs with referable DR.
        specificity: NaN if there are no photographs without referable DR.
    """

    target: float
    threshold: Range
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True)
class Calibrated:
    """Test results of the calibrations of the runs of a row.

    Attributes:
        photographs: Number of validation photographs used for calibration.
        temperatures: By fold, mean over the seeds.
        thresholds: Lower limits of grades 1 to 4 on the expected grade, over the runs.
        nll: Negative log-likelihood.
        brier: Brier score.
        ece: Calibration error after calibration, debiased; that before is among the metrics of the row.
        qwk: For the grades of the head and for those from the fitted thresholds.
        reliability: Of the calibrated probabilities, over all folds.
        points: Operating points; empty if a run has none.
    """

    photographs: Range
    temperatures: Mapping[str, float]
    thresholds: Sequence[Range]
    nll: Change
    brier: Change
    ece: float
    qwk: Change
    reliability: ReliabilityCurve
    points: Sequence[Reached]


@dataclass(frozen=True)
class Referral:
    """Test results of uncertainty limits that were fitted to reach a QWK on the validation photographs.

    Attributes:
        wanted: QWK that was required on the validation photographs.
        limits: Uncertainty above which a photograph is referred, over the runs; -1 refers all.
        reached: Number of runs that reach it with enough validation photographs; the others refer all.
        runs: Number of runs.
        referred: Share of the test photographs that is referred, mean over the folds.
        qwk: QWK of the other test photographs, mean over the folds with some; NaN if there are none.
    """

    wanted: float
    limits: Range
    reached: int
    runs: int
    referred: Estimate
    qwk: Estimate


@dataclass(frozen=True)
class Selective:
    """Selective prediction on the test photographs (:mod:`drgrade.stats.selective`), mean over the folds.

    Attributes:
        metrics: :data:`drgrade.reporting.selective.SELECTIVE`.
        curve: Risk and QWK at each coverage; the curves of all runs are averaged, not their photographs
            pooled.
        referrals: Empty if a run has recorded no uncertainty limits.
    """

    metrics: Mapping[str, Estimate]
    curve: RiskCoverage
    referrals: Sequence[Referral] = ()


@dataclass(frozen=True, kw_only=True)
class MethodCurves:
    """Confusion matrix and curves on test photographs, as the figures of one method show them.

    Attributes:
        method: Key of the method.
        label_fraction: In (0, 1].
        confusion: (5, 5) sum over folds and seeds; rows are true grades.
        calibration: Over the photographs of all folds.
        roc: For referable DR (grade >= 2), mean of the curves of the runs with equal weight of all folds.
        referable_auroc: Mean over the folds.
        selective: Selective prediction.
        calibrated: None if a run has no calibration.
    """

    method: str
    label_fraction: float
    confusion: Counts
    calibration: ReliabilityCurve
    roc: RocCurve
    referable_auroc: Estimate
    selective: Selective
    calibrated: Calibrated | None = None


@dataclass(frozen=True, kw_only=True)
class ResultRow(MethodCurves):
    """Results of a method at a label fraction.

    Attributes:
        folds: QWK of each fold, mean over its seeds and label draws.
        replicates: Pairs of seed and label seed that all folds have in common.
        minimum: QWK over the folds, as ``maximum``.
        mean: QWK over the folds, with the interval of the hierarchical bootstrap.
        sd: Sample standard deviation over the folds (n - 1); NaN for a single fold.
        metrics: Other test metrics (:func:`drgrade.metrics.functional.grading_metrics`), mean over the folds.
        recall: Of each grade, over all folds; NaN if the grade does not occur.
        labels: Number of training labels of a run, mean over the folds.
        labels_used: Number of training and validation labels of a run, mean over the folds.
        val_within_fraction: The validation labels are part of the label fraction.
        seconds: Wall-clock time of training, mean over the runs; NaN if unknown, as ``images_per_second``.
        peak_memory: Bytes, maximum over the runs; None if unknown.
        complete: No run is missing: no cell of the sweep, no fold of other rows, no seed or label draw of
            other folds.
        uncalibrated: Reason why a run has no calibration; else empty.
        learning_rates: Number of runs that chose each learning rate of the list that all tried, by rising
            rate; empty if none was chosen.
    """

    folds: Mapping[str, float]
    replicates: Sequence[tuple[int, int]]
    minimum: float
    mean: Estimate
    maximum: float
    sd: float
    metrics: Mapping[str, float]
    recall: Sequence[Estimate]
    labels: float
    labels_used: float
    seconds: float
    images_per_second: float
    peak_memory: int | None
    complete: bool
    uncalibrated: str = "not calibrated"
    val_within_fraction: bool = False
    learning_rates: Mapping[float, int] = field(default_factory=dict)

    @property
    def share(self) -> str:
        """Label fraction as shown: ``10 %``, or ``10 % incl. val.`` if validation labels are part of it."""
        return f"{fraction(self.label_fraction)}{' incl. val.' if self.val_within_fraction else ''}"

    @property
    def seeds(self) -> list[int]:
        """Training seeds that all folds have in common."""
        return sorted({seed for seed, _ in self.replicates})

    @property
    def label_seeds(self) -> list[int]:
        """Seeds of the label draws that all folds have in common."""
        return sorted({draw for _, draw in self.replicates})

    @property
    def trainings(self) -> str:
        """Number of runs of a fold: ``9``, or ``3 x 3`` if seeds and label draws are crossed."""
        seeds, draws, runs = len(self.seeds), len(self.label_seeds), len(self.replicates)
        return f"{seeds} x {draws}" if seeds * draws == runs and draws > 1 else str(runs)


@dataclass(frozen=True)
class MethodComparison:
    """Comparison of two methods at a label fraction, over the folds and seeds that both have.

    Attributes:
        first: Key of the first method, as ``second``.
        folds: Number of common folds.
        seeds: Number of training seeds that both have in all common folds.
        difference: Of the metric, first minus second, with the interval of the paired hierarchical bootstrap
            (:mod:`drgrade.stats.hierarchical`); NaN for a single seed.
        won: Share of folds in which the first is better; a tie counts half.
        p_value: Two-sided, from the same bootstrap; NaN for a single seed.
        p_holm: Corrected for all p-values of its table (:func:`drgrade.stats.bootstrap.holm_correction`).
        detectable: Smallest true difference whose corrected p-value is below 0.05 with a probability of 80 %,
            at the level of the first step of Holm's correction.
        statistic: Name of the metric in ``metrics.json``.
    """

    first: str
    second: str
    label_fraction: float
    folds: int
    seeds: int
    difference: Estimate
    won: float
    p_value: float
    p_holm: float = float("nan")
    detectable: float = float("nan")
    statistic: str = "qwk"

    def title(self, labels: Mapping[str, str]) -> str:
        """Return the names of the two methods with a minus sign between them."""
        return f"{labels[self.first]} {MINUS} {labels[self.second]}"


@dataclass(frozen=True)
class CrossResult:
    """QWK of a method that was trained on one data set and tested on the same or another one.

    Attributes:
        method: Display name of the method.
        trained: Name of the data set that the runs were trained on.
        tested: Name of the data set that they were tested on.
        qwk: Mean over the test folds, or over the runs on another data set.
        photographs: Number of test photographs.
        runs: Number of runs.
    """

    method: str
    label_fraction: float
    trained: str
    tested: str
    qwk: Estimate
    photographs: int
    runs: int


@dataclass(frozen=True)
class PublishedRow:
    """Result of a paper, a repository or a model card.

    Attributes:
        label: Method, as named in the paper.
        source: Paper, data and protocol.
        mean: QWK over the folds; ``minimum`` and ``maximum`` are None if the paper does not report them.
        of: ``init``, ``pretext`` and ``encoder`` of the method.
        data: Name of the data set.
        caveat: What makes the result hard to compare; empty if nothing is known.
        beside: Line (:attr:`Method.line`) of the same method in the report; empty if there is none.
    """

    label: str
    source: str
    label_fraction: float
    mean: float
    minimum: float | None = None
    maximum: float | None = None
    of: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""
    data: str = "aptos2019"
    caveat: str = ""


@dataclass(frozen=True)
class PretrainingCost:
    """Cost of pre-training one encoder.

    Attributes:
        method: Key of the first method that uses the encoder.
        encoder: Name of its folder.
        seconds: Wall-clock time; NaN if unknown.
        images_per_second: Photographs, not views; NaN if unknown.
        peak_memory: Bytes; None if unknown.
        steps: Optimiser steps; None if unknown, as ``images`` and ``encoder_inputs``.
        images: Photographs processed, counting repetitions.
        encoder_inputs: Per photograph, in units of a full-size image.
    """

    method: str
    encoder: str
    seconds: float
    images_per_second: float
    peak_memory: int | None
    steps: int | None = None
    images: int | None = None
    encoder_inputs: float | None = None


@dataclass(frozen=True)
class Budget:
    """Training budget of a method: steps and photographs of an encoder, and of a run by label fraction.

    Attributes:
        method: Key of the method.
        encoders: Number of pre-trained encoders of its runs; 0 if it is not pre-trained.
        pretraining_images: Photographs processed, counting repetitions, as ``images``.
        pretraining_inputs: Inputs of the encoder, in units of a full-size image.
        pretraining_seconds: Mean over the encoders; NaN if unknown.
        trained: The runs take optimiser steps; False for probes.
        seconds: Mean over the runs; NaN if unknown.
    """

    method: str
    encoders: int
    pretraining_steps: Range
    pretraining_images: Range
    pretraining_inputs: Range
    pretraining_seconds: float
    trained: bool
    steps: Mapping[float, Range]
    images: Mapping[float, Range]
    seconds: float


@dataclass(frozen=True)
class Missing:
    """An expected run without a result.

    The status is ``failed``, ``interrupted``, ``unfinished`` (started, without a result) or ``not begun``.
    """

    name: str
    status: str
    reason: str


@dataclass(frozen=True)
class Study:
    """Content of a report.

    Attributes:
        runs: Folders of the finished runs.
        data: Facts about the data in display order: name, hash, number of photographs, image size, ...
        provenance: Commands, commits, versions, hardware, seeds.
        splits: Split hash by (protocol, label fraction, label seed, fold).
        grades: Number of test photographs of each grade, over all folds.
        methods: In display order.
        rows: By method, then label fraction.
        comparisons: Of pairs of methods, at each label fraction that both have.
        pretrainings: Cost of each encoder.
        notes: Caveats.
        compared: Sentence that describes the compared pairs.
        budgets: One for each method.
        equality: Sentences that compare the budgets of the methods.
        selective_comparisons: Of the same pairs by the metrics of selective prediction, with a correction of
            their own.
        cross: Results across data sets; empty if all runs were tested on their own data set alone.
    """

    title: str
    runs: Sequence[Path]
    missing: Sequence[Missing]
    data: Mapping[str, str]
    provenance: Mapping[str, str]
    splits: Mapping[SplitKey, str]
    grades: Counts
    methods: Sequence[Method]
    rows: Sequence[ResultRow]
    comparisons: Sequence[MethodComparison]
    published: Sequence[PublishedRow]
    pretrainings: Sequence[PretrainingCost]
    notes: Sequence[str] = field(default_factory=tuple)
    compared: str = ""
    budgets: Sequence[Budget] = field(default_factory=tuple)
    equality: Sequence[str] = field(default_factory=tuple)
    selective_comparisons: Sequence[MethodComparison] = field(default_factory=tuple)
    cross: Sequence[CrossResult] = field(default_factory=tuple)

    @property
    def labels(self) -> dict[str, str]:
        """Display name of each method, by key."""
        return {method.key: method.label for method in self.methods}

    @property
    def footnotes(self) -> dict[str, str]:
        """Mark of each caveat of the published results: ``[a]``, ``[b]``, ..."""
        caveats = dict.fromkeys(row.caveat for row in self.published if row.caveat)
        return {caveat: f"[{letter}]" for caveat, letter in zip(caveats, ascii_lowercase, strict=False)}

    @property
    def label_fractions(self) -> list[float]:
        """Label fractions of the rows, ascending."""
        return sorted({row.label_fraction for row in self.rows})

    def rows_of(self, method: str) -> list[ResultRow]:
        """Return the rows of a method (key), by ascending label fraction."""
        rows = [row for row in self.rows if row.method == method]
        return sorted(rows, key=lambda row: row.label_fraction)
