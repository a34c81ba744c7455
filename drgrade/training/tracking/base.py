"""What a run is called where it is watched."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from drgrade.errors import DataError
from drgrade.files import write_text
from drgrade.training.tracking.evaluation import Evaluation

Ending = Literal["finished", "failed", "interrupted"]


@runtime_checkable
class Tracker(Protocol):
    """A logger that shows pictures and is told how the run ended."""

    def show(self, evaluation: Evaluation) -> None:
        """Show confusion matrix and curves of an evaluated set.

        Args:
            evaluation: Of validation, test or external photographs.
        """

    def conclude(self, ending: Ending, record: Mapping[str, object]) -> None:
        """Close the run.

        Args:
            ending: How it ended.
            record: What ``metrics.json`` holds.
        """


def final_name(name: str) -> str:
    """What a figure of ``metrics.json`` is called as one of the run's final figures.

    ``test/qwk`` is final as it is. ``val/qwk`` names a curve, of which a summary keeps the best point; the
    figure of the checkpoint that was tested is ``final/val/qwk``.

    Args:
        name: In ``metrics.json``.

    Returns:
        The name.
    """
    return f"final/{name}" if name.startswith(("train/", "val/")) else name


TRACKING = "tracking.json"


def recall(folder: Path, service: str) -> str | None:
    """The id that a run has.

    Args:
        folder: The run's.
        service: ``wandb`` or ``mlflow``.

    Returns:
        None if the run is not known there yet.

    Raises:
        DataError: If the file is damaged.
    """
    found = _read(folder).get(service)
    return None if found is None else str(found)


def remember(folder: Path, service: str, run_id: str) -> None:
    """Keep the id that a run has been given.

    Args:
        folder: The run's.
        service: ``wandb`` or ``mlflow``.
        run_id: Its id there.
    """
    write_text(folder / TRACKING, json.dumps({**_read(folder), service: run_id}, indent=2) + "\n")


def forget(folder: Path) -> None:
    """Let the next run in a folder be another one.

    Args:
        folder: Of a run that begins anew.
    """
    (folder / TRACKING).unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / TRACKING
    if not path.is_file():
        return {}
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove it, and the run is watched as a new one"
        ) from error
    if not isinstance(ids, dict):
        raise DataError(f"{path} is no JSON object; remove it, and the run is watched as a new one")
    return ids


_LONGEST_TAG = 64
"""Characters; W&B refuses a longer tag."""


@dataclass(frozen=True)
class Card:
    """A run's name and what it can be found by.

    Attributes:
        folder: The run's.
        name: Of the run: the sweep names its cells, a single run has the name of its config.
        group: The sweep; None for a single run.
        job_type: ``grading`` or ``pretext``.
        facts: What it is, by name: method, data, protocol, init, label_fraction, fold, scale.
        tags: Of the user.
    """

    folder: Path
    name: str
    group: str | None
    job_type: str
    facts: Mapping[str, str]
    tags: tuple[str, ...]

    @property
    def all_tags(self) -> list[str]:
        """The facts as words (``rotation``, ``init=ssl``, ``10%``, ``fold=3``), and the user's tags."""
        named = [_tag(name, value) for name, value in self.facts.items()]
        return list(dict.fromkeys([*named, *self.tags]))

    @property
    def curve(self) -> str:
        """What runs of one line of the curve have in common: ``rotation, init=ssl, published``."""
        protocol = self.facts.get("protocol", "pretext")
        return ", ".join([self.facts["method"], f"init={self.facts['init']}", protocol])


def make_card(
    save_dir: str,
    name: str,
    group: str | None,
    job_type: str,
    about: Mapping[str, Any],
    tags: Sequence[str] = (),
) -> Card:
    """Describe a run from its settings.

    Args:
        save_dir: The run's folder.
        name: Of the config.
        group: The sweep, if the run belongs to one.
        job_type: ``grading`` or ``pretext``.
        about: method, model and encoder (the first that is not None names the method), data, protocol, init,
            label_fraction, fold, scale and pretrain_on.
        tags: Further ones.

    Returns:
        The card. Pre-training is not described by what only fine-tuning depends on.
    """
    folder = Path(save_dir)
    facts = {
        "method": about["method"] or about["model"] or str(about["encoder"]).rsplit(".", 1)[-1].lower(),
        "data": about["data"],
        "scale": about["scale"],
        "init": _short(str(about["init"])),
    }
    if job_type == "grading":
        facts |= {"protocol": about["protocol"], "label_fraction": f"{100 * about['label_fraction']:.6g}%"}
    if job_type == "grading" or about["pretrain_on"] == "train":
        facts["fold"] = about["fold"]
    described = {fact: str(value) for fact, value in facts.items()}
    return Card(folder, folder.name if group else name, group, job_type, described, tuple(map(str, tags)))


def _short(init: str) -> str:
    """The last two parts of a path; ``random``, ``imagenet`` and ``ssl`` as they are."""
    return "/".join(Path(init).parts[-2:])


def _tag(name: str, value: str) -> str:
    text = value if name in ("method", "data", "protocol", "label_fraction") else f"{name}={value}"
    return (
        text if len(text) <= _LONGEST_TAG else f"{text[: _LONGEST_TAG // 2 - 1]}…{text[-_LONGEST_TAG // 2 :]}"
    )
