"""What a report says in sentences: what it is, what is missing, how its numbers come about."""

from collections import Counter

from drgrade.reporting import method_labels
from drgrade.reporting.schema import Study
from drgrade.stats import formatting as words

_STATUS_ORDER = ("failed", "interrupted", "unfinished", "not begun")

_MANY = 6
"""Methods; more are counted and not named."""

COMPUTED = {
    "QWK": (
        "Quadratic weighted kappa from one confusion matrix over all test photographs of a fold, never "
        "from a mean over batches. Several seeds of a fold are averaged first; min, mean, max and the "
        "sample standard deviation (n-1) are taken over the folds."
    ),
    "95 % interval": (
        "Percentile bootstrap. Groups (photographs of one patient, and copies) are drawn with replacement "
        "inside each fold, the figure is computed again in each fold and averaged over them. It says how "
        "far the figure may move with other test photographs; it does not say how far with another "
        "training."
    ),
    "Comparison": (
        "Two methods over the folds and seeds that both have, on the same photographs. The same groups "
        "are drawn for both, so that what makes photographs easy or hard for either drops out. Won is the "
        "share of the folds in which the first is better, a tie counting half. p is two-sided: twice the "
        "smaller share of resamples on one side of zero. p (Holm) is corrected for the number of "
        "comparisons of this report. Unless all pairs were asked for, a method is compared with random "
        "weights of the same encoder, fine-tuned by the same protocol, if the report has them."
    ),
    "Confusion matrix": (
        "Counts of all folds and seeds together; per cent of the true grade. Where several seeds were "
        "run, each photograph counts once for each."
    ),
    "Calibration": (
        "Photographs in bins by their largest probability; the share of a bin whose grade had that "
        "probability against its mean. ECE, the expected calibration error, is the mean gap, weighted by "
        "photographs."
    ),
    "Temperature and thresholds": (
        "When a run's checkpoint has been chosen, a temperature T and thresholds between the grades are "
        "fitted on its validation photographs: probabilities become softmax(log p / T), and the "
        "thresholds on their mean are those with the highest QWK there. The figures are of the test "
        "photographs, which were not looked at. NLL is the mean of -log of the probability of the true "
        "grade, none counting as less than 0.000001. The same groups are drawn before and after."
    ),
    "Operating point": (
        "The threshold on the calibrated probability of grade 2 and above with the highest specificity among "
        "those that reach the wanted sensitivity on the validation photographs. What it reaches on the test "
        "photographs of all folds and seeds is counted together. A few dozen validation photographs with "
        "referable DR leave wide room for both."
    ),
    "Referable DR": (
        "Grade 2 and above. The score is the sum of the probabilities of grades 2 to 4. The curve pools "
        "the photographs of all folds; AUROC is computed in each fold and averaged."
    ),
    "Budget": (
        "Counted by the runs, those that went on after a stop and those of several processes included: "
        "optimiser steps, and the photographs that went through them. A pretext may show several views or "
        "only parts of a photograph to the encoder: images seen are photographs times that share."
    ),
    "Cost": (
        "As the runs recorded it, on the hardware named below: wall-clock time of training, photographs "
        "per second, and the highest memory of any run of the row. Pre-training is paid once for an "
        "encoder, however many runs use it."
    ),
    "Published": (
        "Figures of papers, copied from them. They were not computed here, and their photographs, folds "
        "and code are not those of this report."
    ),
}
"""How each number is computed, by what it is called."""


def summary(study: Study) -> str:
    """Say in a paragraph what the report is."""
    shares = words.listed([words.fraction(share) for share in method_labels.fractions(study)])
    folds = len({fold for row in study.rows for fold in row.folds})
    seeds = len({seed for row in study.rows for seed in row.seeds})
    tested = int(study.grades.sum())
    data = study.data.get("data set") or study.data.get("name") or next(iter(study.data.values()), "")
    labels = [method.label for method in study.methods]
    named = words.listed(labels) if len(labels) <= _MANY else f"{len(labels)} methods"
    sentences = [
        f"How well {named} grade{'s' if len(labels) == 1 else ''} diabetic retinopathy (grades 0 to 4) "
        f"with {shares} of the labels{f' of {data}' if data else ''}.",
        f"The figures are computed from the stored predictions of {words.plural(len(study.runs), 'run')}: "
        f"{words.plural(len(study.methods), 'method')}, {words.plural(folds, 'test fold')}, "
        f"{words.plural(seeds, 'seed')}, {words.plural(tested, 'test photograph')} over all folds.",
    ]
    if study.published:
        sentences.append("Rows of papers stand beside them, marked as published.")
    return " ".join(sentences)


def calibration(study: Study) -> str:
    """Say why there is nothing on calibration; empty if there is something."""
    if any(row.calibrated for row in study.rows):
        return ""
    reasons = words.listed(list(dict.fromkeys(row.uncalibrated for row in study.rows)))
    return f"No run was calibrated: {reasons}."


def unfinished(study: Study) -> str:
    """Say how much is missing; empty if nothing is."""
    if not study.missing:
        return ""
    counts = Counter(run.status for run in study.missing)
    ordered = [
        *(status for status in _STATUS_ORDER if status in counts),
        *sorted(counts.keys() - set(_STATUS_ORDER)),
    ]
    kinds = words.listed([f"{counts[status]} {status}" for status in ordered])
    total = words.plural(len(study.runs) + len(study.missing), "run")
    have = "has" if len(study.missing) == 1 else "have"
    return (
        f"Half finished: {len(study.missing)} of {total} {have} no result ({kinds}). Rows that lack a run "
        "are marked with *; their figures stand on the folds that are there, and a mean over fewer folds is "
        "not comparable to one over all."
    )
