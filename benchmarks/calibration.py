"""Measure whether temperatures and thresholds fitted to few photographs improve predictions.

The features are simulated: one depends on the grade, 31 do not. 300 photographs train each head, for a
small and a large number of steps; N others calibrate it; 2000 more are the test set. All figures are means
over the seeds on the test set. Prints the table of docs/calibration.md:

    python benchmarks/calibration.py --seeds 20
"""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from common import make_parser, print_header, print_row
from scipy.optimize import minimize_scalar
from torch import Tensor

from drgrade.metrics.functional import confusion_matrix, negative_log_likelihood, quadratic_weighted_kappa
from drgrade.models.calibration import calibrate_probabilities, calibrated_metrics
from drgrade.models.cross_fitting import fit_and_cross_fit
from drgrade.models.heads import CornHead, CumulativeHead, Head, RegressionHead, SoftmaxHead

SHARES = torch.tensor([0.33, 0.05, 0.33, 0.18, 0.11])  # of the grades of IDRiD
HEADS = (CumulativeHead, SoftmaxHead, CornHead, RegressionHead)
COUNTS = (10, 20, 40, 80, 160)
COLUMNS = ("NLL", "T alone", "if better left out", "T and weight", "QWK", "thresholds", "own", "left out")


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw features (N, 32) and grades (N,)."""
    grades = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    informative = grades + 0.8 * torch.randn(count, generator=generator)
    return torch.cat([informative[:, None], torch.randn(count, 31, generator=generator)], dim=1), grades


def train_head(make: Callable[..., Head], steps: int, seed: int, features: Tensor, grades: Tensor) -> Head:
    """Train a head with Adam on all photographs at once."""
    torch.manual_seed(seed)
    head = make(32, hidden=64, dropout=0.2)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(head(features), grades).backward()
        optimizer.step()
    return head.eval()


def temperature_alone(probabilities: Tensor, grades: Tensor) -> float:
    """Fit the temperature without the grade frequencies and without a prior."""

    def loss(log_temperature: float) -> float:
        calibrated = calibrate_probabilities(probabilities, math.exp(log_temperature), 0, [0.2] * 5)
        return negative_log_likelihood(calibrated, grades)

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.5), 3), method="bounded").x)


def measure(head: Head, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> list[float]:
    """Return a value for each of ``COLUMNS``.

    Args:
        head: A trained head.
        own: Features and grades that the calibration is fitted to.
        others: Features and grades of the test set.
    """
    with torch.no_grad():
        logits = head(others[0])
        p, q = head.probabilities(head(own[0])).double(), head.probabilities(logits).double()
    fitted, left_out = fit_and_cross_fit(p, own[1], list(map(str, range(len(p)))))
    tested, raw = calibrated_metrics(q, others[1], fitted), negative_log_likelihood(q, others[1])
    alone = calibrate_probabilities(q, temperature_alone(p, own[1]), 0, [0.2] * 5)
    better = left_out.get("nll_calibrated", math.inf) < negative_log_likelihood(p, own[1])
    always = tested.get("nll_calibrated", raw)
    return [
        raw,
        negative_log_likelihood(alone, others[1]),
        always if better else raw,
        always,
        float(quadratic_weighted_kappa(confusion_matrix(head.predict(logits), others[1]))),
        tested.get("qwk_thresholds", math.nan),
        calibrated_metrics(p, own[1], fitted).get("qwk_thresholds", math.nan),
        left_out.get("qwk_thresholds", math.nan),
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    results: dict[tuple[str, int, int], list[list[float]]] = defaultdict(list)
    for make in HEADS:
        for steps in (15, 150):
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(seed)
                head = train_head(make, steps, seed, *draw(300, generator))
                others, (features, grades) = draw(2000, generator), draw(max(COUNTS), generator)
                for count in COUNTS:
                    own = features[:count], grades[:count]
                    results[make.__name__, steps, count].append(measure(head, own, others))
    print_header("head", "steps", "N", *COLUMNS)
    for (name, steps, count), rows in results.items():
        print_row(name, steps, count, *(f"{x:.3f}" for x in np.nanmean(rows, axis=0)))
    for count in COUNTS:
        rows = np.concatenate([rows for key, rows in results.items() if key[2] == count])
        print_row("all", "", count, *(f"{x:.3f}" for x in np.nanmean(rows, axis=0)))
        rise = (rows[:, 1:4] - rows[:, :1]).max(axis=0)
        print(f"largest increase of NLL with N = {count}: " + ", ".join(f"{x:+.3f}" for x in rise))


if __name__ == "__main__":
    main()
