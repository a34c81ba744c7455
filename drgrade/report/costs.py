"""What pre-training cost, from the folders of the encoders that runs started from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drgrade.errors import DataError
from drgrade.models.artefact import CARD
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
            used.setdefault(encoder_of(run), run.method)
    costs = [pretraining_cost(encoder, method) for encoder, method in used.items()]
    return sorted(costs, key=lambda cost: (methods.index(cost.method), cost.encoder))


def encoder_of(run: Run) -> Path:
    """Folder of the encoder that a run began with; see :func:`encoder_folder`.

    Args:
        run: With an ``encoder`` in its provenance.
    """
    return encoder_folder(run.folder, Path(str(run.provenance["encoder"])))


def encoder_folder(run: Path, named: Path) -> Path:
    """Folder of an encoder that a run names.

    A path that is not absolute is seen from where the run was started. That is mostly a folder above the
    run's own, and need not be the one in which the report is made.

    Args:
        run: The run's folder.
        named: As its provenance says.
    """
    found = named
    for place in run.resolve().parents:
        if (place / named).exists():
            found = place / named
            break
    return (found.parent if found.is_file() else found).resolve()


def pretraining_cost(encoder: Path, method: str) -> PretrainingCost:
    """What the folder of an encoder says of its pre-training.

    Args:
        encoder: The folder.
        method: Key of a method that uses it.
    """
    facts = read_provenance(encoder)
    card = _card(encoder)
    seconds, speed, peak = facts.get("seconds"), images_per_second(facts), facts.get("peak_memory")
    steps, images, inputs = (
        _number(card.get(name, facts.get(name))) for name in ("steps", "images", "encoder_inputs")
    )
    return PretrainingCost(
        method,
        encoder.name,
        float("nan") if seconds is None else float(seconds),
        float("nan") if speed is None else speed,
        None if peak is None else int(peak),
        None if steps is None else int(steps),
        None if images is None else int(images),
        inputs,
    )


def _card(encoder: Path) -> dict[str, Any]:
    path = encoder / CARD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): pre-train again, or leave its runs out") from error


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
