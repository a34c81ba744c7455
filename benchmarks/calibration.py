"""Is a temperature that was fitted to few photographs worth having, and are thresholds? On drawn features.

    python benchmarks/calibration.py [seeds]

300 drawn photographs train each head (one feature tells of the grade, 31 do not), little and long; N others
calibrate it; 2000 more judge. All figures are of those 2000, means over the seeds.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from drgrade.metrics import confusion_matrix, quadratic_weighted_kappa
from drgrade.metrics.calibration import negative_log_likelihood
from drgrade.models.calibrated import calibrated_metrics, cross_fitted_metrics
from drgrade.models.calibration import Calibration, fit_calibration, tempered
from drgrade.models.heads import CornHead, CumulativeHead, Head, RegressionHead, SoftmaxHead

SHARES = torch.tensor([0.33, 0.05, 0.33, 0.18, 0.11])  # of the grades of IDRiD
HEADS = (CumulativeHead, SoftmaxHead, CornHead, RegressionHead)
COUNTS = (10, 20, 40, 80, 160)


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (N, 32) and grades (N,)."""
    grades = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    telling = grades + 0.8 * torch.randn(count, generator=generator)
    return torch.cat([telling[:, None], torch.randn(count, 31, generator=generator)], dim=1), grades


def trained(head: Callable[..., Head], steps: int, seed: int, features: Tensor, grades: Tensor) -> Head:
    """A head after so many steps of Adam on all photographs."""
    torch.manual_seed(seed)
    made = head(32, hidden=64, dropout=0.2)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        made.loss(made(features), grades).backward()
        optimiser.step()
    return made.eval()


def likeliest(probabilities: Tensor, grades: Tensor) -> float:
    """The temperature without any prior."""

    def loss(x: float) -> float:
        return negative_log_likelihood(tempered(probabilities, math.exp(x)), grades)

    return math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)


def figures(head: Head, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> list[float]:
    """NLL by each policy, then QWK."""
    with torch.no_grad():
        logits = head(others[0])
        p, q = head.probabilities(head(own[0])).double(), head.probabilities(logits).double()
    fitted = fit_calibration(p, own[1])
    judged = calibrated_metrics(q, others[1], fitted)
    always = calibrated_metrics(q, others[1], Calibration(likeliest(p, own[1]), photographs=1))
    left_out = cross_fitted_metrics(p, own[1], list(map(str, range(len(p)))))
    helps = left_out.get("nll_calibrated", math.inf) < left_out["nll"]
    kappa = float(quadratic_weighted_kappa(confusion_matrix(head.predict(logits), others[1])))
    in_sample = calibrated_metrics(p, own[1], fitted).get("qwk_thresholds", math.nan)
    return [
        judged["nll"],
        always["nll_calibrated"],
        always["nll_calibrated"] if helps else judged["nll"],
        judged.get("nll_calibrated", judged["nll"]),
        kappa,
        judged.get("qwk_thresholds", math.nan),
        in_sample,
        left_out.get("qwk_thresholds", math.nan),
    ]


def main(seeds: int) -> None:
    """Print a line for each head and number of photographs."""
    torch.set_num_threads(1)
    found: dict[tuple[str, int, int], list[list[float]]] = defaultdict(list)
    for head in HEADS:
        for steps in (15, 150):
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(seed)
                made = trained(head, steps, seed, *draw(300, generator))
                others, (features, grades) = draw(2000, generator), draw(max(COUNTS), generator)
                for count in COUNTS:
                    own = features[:count], grades[:count]
                    found[head.__name__, steps, count].append(figures(made, own, others))
    names = (
        "NLL",
        "likeliest T",
        "if it helps left out",
        "prior",
        "QWK head",
        "thresholds",
        "own",
        "left out",
    )
    print("| head | steps | N | " + " | ".join(names) + " |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for (name, steps, count), rows in found.items():
        print(
            f"| {name} | {steps} | {count} | "
            + " | ".join(f"{x:.3f}" for x in np.nanmean(rows, axis=0))
            + " |"
        )
    for count in COUNTS:
        rows = np.concatenate([rows for key, rows in found.items() if key[2] == count])
        print(f"| all |  | {count} | " + " | ".join(f"{x:.3f}" for x in np.nanmean(rows, axis=0)) + " |")
        harm = (rows[:, 1:4] - rows[:, :1]).max(axis=0)
        print(f"greatest rise of NLL with N = {count}: " + ", ".join(f"{x:+.3f}" for x in harm))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
