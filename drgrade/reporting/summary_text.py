"""Summary, warnings and explanations of a report."""

from collections import Counter

from drgrade.reporting.schema import Study
from drgrade.stats.formatting import fraction, listed, plural

_STATUS_ORDER = ("failed", "interrupted", "unfinished", "not begun")

_MANY = 6
"""Number of methods above which they are counted instead of named."""

COMPUTED = {
    "QWK": (
        "Quadratic weighted kappa from one confusion matrix over all test photographs of a fold. Several "
        "seeds of a fold are averaged first; minimum, mean, maximum and sample standard deviation (n-1) are "
        "taken over the folds."
    ),
    "95 % interval": (
        "Percentile bootstrap: groups (photographs of one patient, and near-duplicates) are drawn with "
        "replacement inside each fold; the metric is computed in each fold and averaged over the folds. The "
        "interval reflects the choice of test photographs, not the variation between trainings."
    ),
    "Comparison": (
        "Two methods are compared over the folds and seeds that both have, on the same photographs, with the "
        "same bootstrap draws for both. Won: share of folds in which the first is better; a tie counts half. "
        "p: two-sided, twice the smaller share of resamples on one side of zero. p (Holm): corrected for the "
        "number of comparisons in this report. By default, each method is compared with random "
        "initialisation of the same encoder under the same protocol, if the report contains it."
    ),
    "Confusion matrix": (
        "Counts over all folds and seeds; percentages refer to the true grade. With several seeds, each "
        "photograph counts once per seed."
    ),
    "Calibration": (
        "Photographs are binned by their largest probability; the accuracy of a bin is compared with its "
        "mean probability. The expected calibration error (ECE) is the mean absolute difference, weighted by "
        "the number of photographs."
    ),
    "Temperature and thresholds": (
        "After the checkpoint of a run is selected, a temperature T and thresholds between grades are fitted "
        "on its validation photographs. Probabilities become softmax(log p / T); the thresholds on the "
        "expected grade maximise QWK. Results are for test photographs, which are not used for fitting. NLL "
        "is the mean of -log p of the true grade, with p clipped at 0.000001. Values before and after use "
        "the same bootstrap draws."
    ),
    "Operating point": (
        "Among the thresholds on the calibrated probability of grade >= 2 that reach the target sensitivity "
        "on the validation photographs, the one with the highest specificity. Sensitivity and specificity "
        "are computed over the test photographs of all folds and seeds together. With few validation "
        "photographs with referable DR, both can differ considerably from the target."
    ),
    "Referable DR": (
        "Grade 2 and above. The score is the sum of the probabilities of grades 2 to 4. The ROC curve pools "
        "the photographs of all folds; AUROC is computed in each fold and averaged."
    ),
    "Budget": (
        "Optimiser steps and photographs processed, as counted by the runs, including resumed and "
        "distributed runs. A pretext may pass several views or parts of a photograph to the encoder: encoder "
        "inputs are photographs times the number of full-size images per photograph."
    ),
    "Cost": (
        "As recorded by the runs on the hardware listed under provenance: wall-clock time of training, "
        "photographs per second, and the maximum memory of all runs of a row. Pre-training is counted once "
        "per encoder."
    ),
    "Published": (
        "Results reported in papers. Their photographs, folds and code differ from those of this report."
    ),
}
"""Explanation of each kind of number."""


def summary(study: Study) -> str:
    """Summarise the report in a paragraph."""
    shares = listed([fraction(share) for share in study.label_fractions])
    folds = len({fold for row in study.rows for fold in row.folds})
    seeds = len({seed for row in study.rows for seed in row.seeds})
    tested = int(study.grades.sum())
    data = study.data.get("data set") or study.data.get("name") or next(iter(study.data.values()), "")
    labels = [method.label for method in study.methods]
    named = listed(labels) if len(labels) <= _MANY else f"{len(labels)} methods"
    sentences = [
        f"Grading of diabetic retinopathy (grades 0 to 4) by {named} with {shares} of the labels"
        f"{f' of {data}' if data else ''}.",
        f"Results are computed from the stored predictions of {plural(len(study.runs), 'run')}: "
        f"{plural(len(study.methods), 'method')}, {plural(folds, 'test fold')}, "
        f"{plural(seeds, 'seed')}, {plural(tested, 'test photograph')} in all folds.",
    ]
    if study.published:
        sentences.append("Results from papers are marked as published.")
    return " ".join(sentences)


def calibration(study: Study) -> str:
    """Return the reason why no run was calibrated; empty if one was."""
    if any(row.calibrated for row in study.rows):
        return ""
    reasons = listed(list(dict.fromkeys(row.uncalibrated for row in study.rows)))
    return f"No run was calibrated: {reasons}."


def unfinished(study: Study) -> str:
    """Describe how many runs are missing; empty if none is."""
    if not study.missing:
        return ""
    counts = Counter(run.status for run in study.missing)
    ordered = [
        *(status for status in _STATUS_ORDER if status in counts),
        *sorted(counts.keys() - set(_STATUS_ORDER)),
    ]
    kinds = listed([f"{counts[status]} {status}" for status in ordered])
    total = plural(len(study.runs) + len(study.missing), "run")
    have = "has" if len(study.missing) == 1 else "have"
    return (
        f"Incomplete: {len(study.missing)} of {total} {have} no result ({kinds}). Rows with missing runs are "
        "marked with *; they use the available folds only and are not comparable with complete rows."
    )
