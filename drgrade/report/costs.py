"""What pre-training cost, from the folders of the encoders that runs started from."""

from collections.abc import Sequence
from pathlib import Path

from drgrade.report.contents import PretrainingCost
from drgrade.report.reading import Run, read_provenance
from drgrade.report.statistics import images_per_second


def pretraining_costs(runs: Sequence[Run], methods: Sequence[str]) -> list[PretrainingCost]:
    """Cost of every encoder that there still is, once, whatever the number of its runs.

    Args:
        runs: Of a report.
        methods: Keys, in the order in which they are shown.

    Returns:
        By method, then name; an encoder that several methods use stands with the first of them.
    """
    used: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: methods.index(run.method)):
        encoder = run.provenance.get("encoder")
        if encoder:
            used.setdefault(str(encoder), run.method)
    costs = [cost for encoder, method in used.items() if (cost := _cost(Path(encoder), method)) is not None]
    return sorted(costs, key=lambda cost: (methods.index(cost.method), cost.encoder))


def _cost(encoder: Path, method: str) -> PretrainingCost | None:
    """None where the folder is gone, or holds a copy that does not say what it took."""
    facts = read_provenance(encoder)
    if facts.get("seconds") is None:
        return None
    speed, peak = images_per_second(facts), facts.get("peak_memory")
    return PretrainingCost(
        method,
        encoder.name,
        float(facts["seconds"]),
        float("nan") if speed is None else speed,
        None if peak is None else int(peak),
    )
