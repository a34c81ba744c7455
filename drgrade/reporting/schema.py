"""What a report says, as plain data: made by :mod:`drgrade.reporting.study`, shown by the writers.

A *method* is everything that is equal in all its runs: encoder, pretext, first weights, head, protocol and
all other settings but the axes (label fraction, fold, seed). A *row* is a method at a label fraction. Its
*folds* are the runs whose mean is reported; several seeds of a fold are averaged before anything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drgrade.stats.estimates import Counts, Estimate, Floats, Range


@dataclass(frozen=True)
class Method:
    """What the rows of one method have in common.

    Attributes:
        key: Unique and stable, from its settings; safe in a file name.
        label: What people call it, as short as the other methods of the report allow.
        protocol: ``published``, ``matched``, or another protocol's name; where a report has several under
            one name, with the settings that tell them apart: ``published (epochs=5)``.
        init: ``random``, ``imagenet``, ``ssl`` or a path.
        settings: The settings in which it differs from any other method of the report, apart from
            ``method``, ``init`` and ``protocol.name``: ``head: CornHead`` for a class,
            ``protocol.epochs: 20`` for others.
        saw_test: Whether pre-training saw test photographs, without grades; None: not known.
        line: What people call it apart from its protocol: methods of one line are the same, fine-tuned by
            several protocols; empty: as ``label``.
        pretext: Name of the pretext that it was pre-trained with; empty where that is not known.
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
        """What it is called beside methods of other lines."""
        return self.line or self.label


@dataclass(frozen=True)
class RocCurve:
    """A line in a figure: ROC (false against true positive rate) or another one.

    Attributes:
        x: (N,); empty where the figure is not defined, as ``y``.
        y: (N,).
    """

    x: Floats
    y: Floats


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy, in the bins of the expected calibration error.

    Attributes:
        confidence: (bins,) mean of the largest probability; NaN where a bin is empty.
        accuracy: (bins,) share of those photographs whose grade had that probability; NaN where a bin is
            empty.
        count: (bins,) photographs.
        ece: Expected calibration error, mean over folds.
    """

    confidence: Floats
    accuracy: Floats
    count: Counts
    ece: float


@dataclass(frozen=True)
class Change:
    """A figure before and after calibration, mean over the folds.

    Attributes:
        before: As the model is.
        after: Calibrated, or read by the fitted thresholds.
        difference: After minus before; the interval is of the paired bootstrap.
    """

    before: float
    after: float
    difference: Estimate


@dataclass(frozen=True)
class Reached:
    """What an operating point for referable DR reaches on the test photographs of all folds together.

    Attributes:
        target: Sensitivity that it had to reach on the validation photographs.
        threshold: Calibrated P(grade >= 2) from which on a photograph is referred, over the runs.
        sensitivity: Reached; NaN where there are no such photographs, as ``specificity``.
        specificity: Reached.
    """

    target: float
    threshold: Range
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True)
class Calibrated:
    """What the calibrations of a row's runs are worth on the test photographs.

    Attributes:
        photographs: Validation photographs that a run was calibrated on.
        temperatures: By fold, mean over its seeds.
        thresholds: Where grade 1, 2, 3 and 4 begin on the line of the expected grade, over the runs.
        nll: Negative log-likelihood.
        ece: Expected calibration error.
        qwk: As the head reads grades, and by the fitted thresholds.
        reliability: Of the calibrated probabilities, over all folds.
        points: Operating points; empty where a run has none.
    """

    photographs: Range
    temperatures: Mapping[str, float]
    thresholds: Sequence[Range]
    nll: Change
    ece: Change
    qwk: Change
    reliability: ReliabilityCurve
    points: Sequence[Reached]


@dataclass(frozen=True)
class ResultRow:
    """A method at a label fraction.

    Attributes:
        method: Key of the method.
        label_fraction: In (0, 1].
        folds: QWK of every fold, mean over its seeds, by the fold's name.
        seeds: Seeds that every fold has (their number differs between folds only in a half-finished sweep).
        minimum: Over the folds.
        mean: Over the folds, with its interval (bootstrap of groups inside folds).
        maximum: Over the folds.
        sd: Sample standard deviation over the folds (n - 1); NaN for a single fold.
        metrics: Mean over the folds of the other test metrics, from the stored predictions: ``accuracy``,
            ``auroc``, ``mae``, ``ece``, ... (see :func:`drgrade.metrics.functional.grading_metrics`).
        confusion: (5, 5) summed over folds and seeds; rows are the true grade.
        recall: Per grade, over all folds; NaN value where the grade does not occur.
        calibration: Over all folds.
        roc: Referable DR (grade >= 2), one curve over the pooled photographs of all folds.
        referable_auroc: Mean over the folds, with its interval.
        labels: Training labels of a run, mean over the folds.
        seconds: Wall-clock seconds of training, mean over the runs; NaN where not known.
        images_per_second: Mean over the runs; NaN where not known.
        peak_memory: Bytes, the highest of all runs; None where not known.
        complete: Whether no run of the row is missing: none of its sweep's cells, no fold that another row of
            the report has, no seed of a fold that another of its folds has.
        calibrated: What the calibrations of its runs are worth; None where a run has none.
        uncalibrated: Why a run has none; empty otherwise.
    """

    method: str
    label_fraction: float
    folds: Mapping[str, float]
    seeds: Sequence[int]
    minimum: float
    mean: Estimate
    maximum: float
    sd: float
    metrics: Mapping[str, float]
    confusion: Counts
    recall: Sequence[Estimate]
    calibration: ReliabilityCurve
    roc: RocCurve
    referable_auroc: Estimate
    labels: float
    seconds: float
    images_per_second: float
    peak_memory: int | None
    complete: bool
    calibrated: Calibrated | None = None
    uncalibrated: str = "not calibrated"


@dataclass(frozen=True)
class MethodComparison:
    """Two methods at a label fraction, over the folds and seeds that both have.

    Attributes:
        first: Key of a method.
        second: Key of the other.
        label_fraction: In (0, 1].
        folds: Number of common folds.
        difference: Mean QWK of first minus second; interval from a paired bootstrap of groups inside folds.
        won: Share of the folds in which the first is better; a tie counts half.
        p_value: Two-sided, from the same bootstrap: twice the smaller share of resamples on one side of zero;
            never 0, at least 2 / (resamples + 1).
        p_holm: The same, corrected by Holm's method for the number of comparisons of the report.
    """

    first: str
    second: str
    label_fraction: float
    folds: int
    difference: Estimate
    won: float
    p_value: float
    p_holm: float = float("nan")


@dataclass(frozen=True)
class PublishedRow:
    """Figures of a paper, which were not computed here.

    Attributes:
        label: Method, as the paper has it.
        source: Paper, data and protocol, in a phrase.
        label_fraction: In (0, 1].
        minimum: None where the paper does not give it, as ``maximum``.
        mean: QWK.
        maximum: See ``minimum``.
        of: What tells the method: ``init``, ``pretext`` and ``encoder``.
        beside: The line (:attr:`Method.line`) of the report that is the same method; empty if there is none.
    """

    label: str
    source: str
    label_fraction: float
    mean: float
    minimum: float | None = None
    maximum: float | None = None
    of: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""


@dataclass(frozen=True)
class PretrainingCost:
    """What pre-training one encoder took.

    Attributes:
        method: Key of the method that uses it.
        encoder: Name of its folder.
        seconds: Wall-clock; NaN where not known: the encoder's folder is gone, or does not say.
        images_per_second: Photographs, not their views; NaN where not known.
        peak_memory: Bytes; None where not known.
        steps: Optimiser steps; None where not known, as the following.
        images: Photographs that went through them, each time counted.
        encoder_inputs: Images that the encoder saw of each, in units of a whole one.
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
    """What the runs of a method, and the encoders that they began with, were allowed.

    Attributes:
        method: Key of the method.
        encoders: How many pre-trained encoders its runs began with; 0: it is not pre-trained.
        pretraining_steps: Optimiser steps of an encoder.
        pretraining_images: Photographs that an encoder learnt from, each time counted.
        pretraining_inputs: Images that the encoder saw of them, in units of a whole one.
        pretraining_seconds: Mean over the encoders; NaN where not known.
        trained: Whether the runs train anything: a probe is fitted at once.
        steps: Optimiser steps of a run, by label fraction.
        images: Photographs that went through them, by label fraction.
        seconds: Of a run, mean; NaN where not known.
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
    """A run that should be there and is not finished.

    Attributes:
        name: Of its folder, or what would be run.
        status: ``failed``, ``interrupted``, ``unfinished`` (begun, without a result) or ``not begun``.
        reason: Why, where it is known.
    """

    name: str
    status: str
    reason: str


@dataclass(frozen=True)
class Study:
    """Everything that a report says.

    Attributes:
        title: Of the page.
        runs: Finished runs that the figures come from.
        missing: Runs that are not finished.
        data: Facts about the data, in the order in which they are shown: name, hash, photographs, image size,
            ...
        provenance: Facts about how it was made: commands, commits, versions, hardware, seeds.
        splits: Split hash of every label fraction and fold, by (protocol, fraction, fold).
        grades: Test photographs of each grade, over all folds.
        methods: In the order in which they are shown.
        rows: By method, then label fraction.
        comparisons: Of pairs of methods, at every fraction that both have.
        published: Rows of papers.
        pretrainings: Cost of each encoder.
        notes: Sentences that a reader of the figures has to know.
        compared: A sentence on which pairs are compared.
        budgets: Of each method.
        equality: Sentences on whether the methods were allowed the same.
    """

    title: str
    runs: Sequence[Path]
    missing: Sequence[Missing]
    data: Mapping[str, str]
    provenance: Mapping[str, str]
    splits: Mapping[tuple[str, float, str], str]
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
