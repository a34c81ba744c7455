"""Metrics as functions of tensors, computed in float64."""

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from drgrade.errors import DrgradeError
from drgrade.grades import MIN_PROBABILITY, NUM_BINS, NUM_GRADES, REFERABLE

_logger = logging.getLogger("drgrade.metrics")


@cache
def undefined_value(name: str, value: float, reason: str) -> float:
    """Return ``value``, that of a grader without any skill, for an undefined metric; warn on the first call.

    NaN would silently break comparisons such as "best checkpoint so far".
    """
    _logger.warning(
        "%s is undefined (%s) and reported as %g; this warning is not repeated", name, reason, value
    )
    return value


def confusion_matrix(predicted: Tensor, grades: Tensor, num_grades: int = NUM_GRADES) -> Tensor:
    """Count the photographs of each pair of true and predicted grade.

    Args:
        predicted: (N,) integers, 0 to ``num_grades`` - 1.
        grades: (N,) integers, the true grades.
        num_grades: Number of grades G.

    Returns:
        (G, G) int64; rows are true grades, columns predictions.

    Raises:
        ValueError: If the lengths differ or a value is not a grade.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), num_grades=2)
        tensor([[1, 1],
                [0, 1]])
    """
    if predicted.shape != grades.shape or grades.ndim != 1:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and grades {tuple(grades.shape)} must be "
            "vectors of equal length"
        )
    pairs = torch.stack((grades, predicted)).long()  # (2, N)
    if pairs.numel():
        low, high = (int(bound) for bound in pairs.aminmax())
        if low < 0 or high >= num_grades:
            raise ValueError(f"grades must lie in 0 to {num_grades - 1}, found {low} to {high}")
    counts = torch.bincount(pairs[0] * num_grades + pairs[1], minlength=num_grades**2)
    return counts.reshape(num_grades, num_grades)


def quadratic_weighted_kappa(confusion: Tensor) -> Tensor:
    """Compute the quadratic weighted kappa (QWK), the agreement beyond chance with squared errors.

    Cohen, "Weighted kappa", Psychological Bulletin 70(4), 1968: 1 - sum(w * O) / sum(w * E), with the counts
    O, the counts E expected of independent graders with the same margins, and w_ij = (i - j)^2.

    Args:
        confusion: (G, G) counts.

    Returns:
        Scalar float64 in [-1, 1]. If truth and predictions are one and the same single grade, or there are no
        photographs, the formula is 0 / 0 and the value 0: no evidence of agreement beyond chance.

    Example:
        >>> quadratic_weighted_kappa(torch.tensor([[4, 1], [1, 4]]))
        tensor(0.6000, dtype=torch.float64)
    """
    counts = confusion.double()
    grades = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    weights = (grades[:, None] - grades[None, :]).square()  # (G, G)
    # Multiplied by the total, both sums are whole numbers below 2^53, independent of the summation order.
    observed = (weights * counts).sum() * counts.sum()
    expected = (weights * torch.outer(counts.sum(dim=1), counts.sum(dim=0))).sum()
    if expected == 0:
        return counts.new_tensor(
            undefined_value("qwk", 0.0, "only one grade occurs, in truth and predictions")
        )
    return 1 - observed / expected


def auroc(scores: Tensor, positive: Tensor, name: str = "auroc") -> float:
    """Compute the area under the receiver operating characteristic; ties count one half.

    It is the probability that a positive scores above a negative (Mann and Whitney, Annals of Mathematical
    Statistics 18(1), 1947; Hanley and McNeil, Radiology 143(1), 1982).

    Args:
        scores: (N,) float, higher means more likely positive.
        positive: (N,) bool.
        name: Name of the metric in the warning if it is undefined.

    Returns:
        A value in [0, 1]; 0.5 without positives or without negatives.

    Example:
        >>> auroc(torch.tensor([0.9, 0.4, 0.4, 0.1]), torch.tensor([True, True, False, False]))
        0.875
    """
    _, rank = torch.unique(scores, return_inverse=True)  # (N,) rank among the distinct scores, from 0
    levels = int(rank.max()) + 1 if len(rank) else 0
    positives = torch.bincount(rank[positive], minlength=levels)  # (levels,)
    negatives = torch.bincount(rank[~positive], minlength=levels)  # (levels,)
    pairs = int(positives.sum()) * int(negatives.sum())
    if pairs == 0:
        return undefined_value(name, 0.5, "it needs positives and negatives")
    below = negatives.cumsum(dim=0) - negatives
    # Whole numbers, so the result does not depend on the order of the photographs.
    doubled = int((positives * (2 * below + negatives)).sum())
    return doubled / (2 * pairs)


def referable_probability(probabilities: Tensor) -> Tensor:
    """Return the probability of referable DR (B,), P(grade >= 2), of distributions (B, G).

    In double precision it has 12 decimals, so that rounding errors order no photographs.
    """
    scores = probabilities[:, REFERABLE:].sum(dim=1)
    return scores.round(decimals=12) if scores.dtype == torch.float64 else scores


def expected_calibration_error(probabilities: Tensor, grades: Tensor, bins: int = NUM_BINS) -> float:
    """Estimate the root-mean-square gap between confidence and accuracy without the bias of small bins.

    Confidence is the largest probability; a photograph is correct if that probability is the one of its
    grade. Within bins of about equal size, (mean confidence - accuracy)^2 minus the variance of the accuracy,
    accuracy (1 - accuracy) / (n - 1), estimates the squared gap without bias (Kumar, Liang and Ma, "Verified
    uncertainty calibration", NeurIPS 2019, section 4). The mean over the photographs is the squared error.
    The mean absolute gap in equal-width bins (Guo et al., ICML 2017) is 0.1 for a perfectly calibrated model
    of 100 photographs. Photographs are taken as independent, and gaps that cancel within a bin are not seen.

    Args:
        probabilities: (N, G), rows with sum 1.
        grades: (N,) int64.
        bins: Largest number of bins; photographs of equal confidence share one, and each has at least two.

    Returns:
        A value in [-1, 1]: the square root with the sign of the estimate. Negative values, about half of
        those of a calibrated model, mean that no error is seen. 0 with fewer than two photographs.
    """
    total = len(grades)
    if total < 2:
        return undefined_value("ece", 0.0, "there are fewer than two photographs")
    # On the CPU bincount adds in the order of the photographs, so equal data give equal bits.
    confidence, top = probabilities.double().cpu().max(dim=1)  # (N,), (N,)
    correct = (top == grades.cpu()).double()
    bin_of = _equal_bins(confidence, bins)
    sizes = torch.bincount(bin_of)
    gap, accuracy = (torch.bincount(bin_of, weights=x) / sizes for x in (confidence - correct, correct))
    squared = (sizes * (gap.square() - accuracy * (1 - accuracy) / (sizes - 1))).sum() / total
    return float(squared.sign() * squared.abs().sqrt())


def _equal_bins(confidence: Tensor, bins: int) -> Tensor:
    """Return the bin (N,) of each photograph: at most ``bins`` of about equal size, each of two or more."""
    _, place, counts = torch.unique(confidence, return_inverse=True, return_counts=True)
    rank = counts.cumsum(dim=0) - counts  # of the first photograph with each confidence
    _, bin_of = torch.unique((rank * bins // len(confidence))[place], return_inverse=True)
    sizes = torch.bincount(bin_of).tolist()
    merged, last, filled = [0] * len(sizes), 0, 0
    for number, size in enumerate(sizes):
        if filled >= 2 and sum(sizes[number:]) >= 2:
            last, filled = last + 1, 0
        merged[number] = last
        filled += size
    return torch.tensor(merged)[bin_of]


def negative_log_likelihood(probabilities: Tensor, grades: Tensor) -> float:
    """Compute the mean of -log of the probability of the true grade, in nats.

    Args:
        probabilities: (N, G), rows with sum 1.
        grades: (N,) int64.

    Returns:
        A value in [0, 13.8], as probabilities are clamped at ``MIN_PROBABILITY``; a uniform distribution over
        five grades has 1.609. 0 without photographs.
    """
    if len(grades) == 0:
        return undefined_value("nll", 0.0, "there are no photographs")
    of_truth = probabilities.double().cpu().gather(1, grades.cpu()[:, None])
    return float(-of_truth.clamp(min=MIN_PROBABILITY).log().mean())


def brier_score(probabilities: Tensor, grades: Tensor) -> float:
    """Compute the mean squared error of the probabilities, summed over the grades.

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78(1), 1950,
    equation 2.

    Args:
        probabilities: (N, G), rows with sum 1.
        grades: (N,) int64.

    Returns:
        A value in [0, 2]; a uniform distribution over five grades has 0.8. 0 without photographs.
    """
    if len(grades) == 0:
        return undefined_value("brier", 0.0, "there are no photographs")
    truth = F.one_hot(grades.cpu(), probabilities.shape[1])
    return float((probabilities.double().cpu() - truth).square().sum(dim=1).mean())


def sensitivity_specificity(referred: Tensor, positive: Tensor) -> tuple[float, float]:
    """Compute the sensitivity and the specificity of a decision.

    Args:
        referred: (N,) bool, the decision.
        positive: (N,) bool, the truth.

    Returns:
        Share of the positives that are referred, and share of the negatives that are not; 0 for a share of no
        photographs.
    """
    referred, positive = referred.cpu(), positive.cpu()
    hits, rejections = referred[positive], ~referred[~positive]
    return (
        _ratio("sensitivity", int(hits.sum()), len(hits)),
        _ratio("specificity", int(rejections.sum()), len(rejections)),
    )


def grading_metrics(probabilities: Tensor, predicted: Tensor, grades: Tensor) -> dict[str, float]:
    """Compute all reported metrics over a whole set at once, in float64 on the CPU.

    No value is ever NaN. A metric that the data do not define is 0.5 for an AUROC and 0 otherwise, and a
    warning is logged once.

    Args:
        probabilities: (N, G), rows with sum 1.
        predicted: (N,) int64 grades as read by the head, not always the most probable ones.
        grades: (N,) int64, the true grades.

    Returns:
        ``qwk``, ``accuracy``, ``macro_f1`` (mean over the grades that occur in truth or predictions), ``mae``
        in grades, ``recall_0`` ..., ``auroc_0`` ... (one grade against the rest), ``auroc`` (their mean over
        the grades that occur), ``referable_auroc`` (score: the probability of grade 2 or more),
        ``referable_sensitivity`` and ``referable_specificity`` (of the predicted grade: 2 or more; the
        referral decision of a run is another one, :func:`drgrade.models.calibration.referral_rule`),
        ``nll``, ``brier`` and ``ece``.

    Raises:
        ValueError: If the shapes do not fit or a value is not a grade.
        DrgradeError: If a probability is not finite.

    Example:
        >>> grades = torch.tensor([0, 1, 2, 3, 4])
        >>> grading_metrics(torch.eye(5)[grades], grades, grades)["qwk"]
        1.0
    """
    probabilities, predicted, grades = (x.detach().cpu() for x in (probabilities, predicted, grades))
    if probabilities.ndim != 2 or len(probabilities) != len(grades):
        raise ValueError(f"probabilities {tuple(probabilities.shape)} do not fit {len(grades)} grades")
    if not bool(torch.isfinite(probabilities).all()):
        raise DrgradeError(
            "the model's probabilities are not finite: training has diverged; try a lower learning rate or "
            "trainer.precision=32-true"
        )
    probabilities = probabilities.double()
    confusion = confusion_matrix(predicted, grades, num_grades=probabilities.shape[1])
    return {
        "qwk": float(quadratic_weighted_kappa(confusion)),
        **_confusion_metrics(confusion),
        **_aurocs(probabilities, grades),
        "nll": negative_log_likelihood(probabilities, grades),
        "brier": brier_score(probabilities, grades),
        "ece": expected_calibration_error(probabilities, grades),
    }


def _confusion_metrics(confusion: Tensor) -> dict[str, float]:
    """Compute the metrics, except for QWK, that follow from the confusion matrix (G, G)."""
    places = torch.arange(len(confusion))
    distance = (places[:, None] - places[None, :]).abs()
    total = int(confusion.sum())
    referred = confusion[:, REFERABLE:].sum(dim=1)  # (G,) by true grade
    true = confusion.sum(dim=1)  # (G,)
    return {
        "accuracy": _ratio("accuracy", int(confusion.trace()), total),
        "macro_f1": _macro_f1(confusion),
        "mae": _ratio("mae", int((distance * confusion).sum()), total),
        **{f"recall_{k}": _ratio(f"recall_{k}", int(confusion[k, k]), int(true[k])) for k in places.tolist()},
        "referable_sensitivity": _ratio(
            "referable_sensitivity", int(referred[REFERABLE:].sum()), int(true[REFERABLE:].sum())
        ),
        "referable_specificity": _ratio(
            "referable_specificity", int((true - referred)[:REFERABLE].sum()), int(true[:REFERABLE].sum())
        ),
    }


def _macro_f1(confusion: Tensor) -> float:
    """Return the mean of 2 TP / (2 TP + FP + FN) over the grades that occur in truth or predictions."""
    hits = confusion.diagonal().tolist()
    totals = (confusion.sum(dim=0) + confusion.sum(dim=1)).tolist()  # 2 TP + FP + FN
    scores = [2 * hit / total for hit, total in zip(hits, totals, strict=True) if total]
    return (
        sum(scores) / len(scores) if scores else undefined_value("macro_f1", 0.0, "there are no photographs")
    )


def _aurocs(probabilities: Tensor, grades: Tensor) -> dict[str, float]:
    single = {
        f"auroc_{k}": auroc(probabilities[:, k], grades == k, name=f"auroc_{k}")
        for k in range(probabilities.shape[1])
    }
    present = [single[f"auroc_{k}"] for k in sorted(set(grades.tolist()))]
    mean = (
        sum(present) / len(present)
        if len(present) > 1
        else undefined_value("auroc", 0.5, "it needs photographs of two grades")
    )
    scores = referable_probability(probabilities)
    referable = auroc(scores, grades >= REFERABLE, name="referable_auroc")
    return {"auroc": mean, **single, "referable_auroc": referable}


def _ratio(name: str, part: int, whole: int) -> float:
    return part / whole if whole else undefined_value(name, 0.0, "no photographs to count")


def feature_std(features: Tensor) -> float:
    """Compute the spread of normalised features: 1 for isotropic directions, 0 for collapsed features.

    It is the mean over dimensions of the standard deviation of the normalised features, times sqrt(D) (Chen
    and He, "Exploring simple Siamese representation learning", CVPR 2021, section 4.1).

    Args:
        features: (N, D).

    Returns:
        A value in [0, 1], up to the small-sample correction; 0 for fewer than two photographs.
    """
    if len(features) < 2:
        return 0.0
    normalised = F.normalize(features.double(), dim=1)
    return float(normalised.std(dim=0).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """Compute the effective rank of features: exp of the entropy of their normalised singular values.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007; used as a measure of representations by Garrido et
    al., "RankMe", ICML 2023. The mean is subtracted first, so a constant added to all features has no effect.

    Args:
        features: (N, D).

    Returns:
        A value in [1, min(N - 1, D)]; 0 if the features are constant; NaN if one is not finite.
    """
    if not torch.isfinite(features).all():
        return float("nan")
    centred = features.double() - features.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    # A constant leaves singular values of the size of the rounding error.
    scale = features.double().abs().max() if features.numel() else torch.zeros(())
    if not len(values) or not values[0] > 1e-9 * scale * max(features.shape):
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))
