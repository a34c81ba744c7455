"""What pre-training cost, from the folders of the encoders that runs started from."""

from collections.abc import Sequence
from pathlib import Path

from drgrade.report.contents import PretrainingCost
from drgrade.report.reading import Run, read_provenance
from drgrade.report.statistics import images_per_second


def pretraining_costs(runs: Sequence[Run], methods: Sequence[str]) -> list[PretrainingCost]:
    """Cost of every encoder, once, whatever the number of its runs.

    Args:
        runs: Of a report.
        methods: Keys, in the order in which they are shown.

    Returns:
        By method, then name; an encoder that several methods use stands with the first of them. What is not
        known, because the folder is gone or holds a copy that does not say what it took, is NaN or None.
    """
    used: dict[Path, str] = {}
    for run in sorted(runs, key=lambda run: methods.index(run.method)):
        if run.provenance.get("encoder"):
            used.setdefault(_folder(run), run.method)
    costs = [_cost(encoder, method) for encoder, method in used.items()]
    return sorted(costs, key=lambda cost: (methods.index(cost.method), cost.encoder))


def _folder(run: Run) -> Path:
    """Folder of the encoder that a run began with.

    A path that is not absolute is seen from where the run was started. That is mostly a folder above the
    run's own, and need not be the one in which the report is made.
    """
    named = Path(str(run.provenance["encoder"]))
    found = named
    for place in run.folder.resolve().parents:
        if (place / named).exists():
            found = place / named
            break
    return (found.parent if found.is_file() else found).resolve()


def _cost(encoder: Path, method: str) -> PretrainingCost:
    facts = read_provenance(encoder)
    seconds, speed, peak = facts.get("seconds"), images_per_second(facts), facts.get("peak_memory")
    return PretrainingCost(
        method,
        encoder.name,
        float("nan") if seconds is None else float(seconds),
        float("nan") if speed is None else speed,
        None if peak is None else int(peak),
    )
