"""``drgrade publish``: a run's model card, and the run as a folder or on the Hugging Face hub."""

from dataclasses import dataclass, field
from pathlib import Path

from drgrade.cli.arguments import run
from drgrade.errors import ConfigError

USAGE = """\
usage: drgrade publish checkpoint=RUN [to=FOLDER | to=hf://user/name] [name=value ...]

Without to= the model card is written again into the run's folder (model_card.md). With it the run is handed
on: config.json, model.safetensors, README.md (the card), and nothing that names a photograph, a patient or a
place.
"""


@dataclass(frozen=True)
class Settings:
    """What can be set on the command line."""

    checkpoint: Path | None = field(default=None, metadata={"help": "folder of a run, or a published one"})
    to: str = field(default="", metadata={"help": "a new folder, or hf://user/name"})
    overwrite: bool = field(default=False, metadata={"help": "replace a folder published before"})
    private: bool = field(default=True, metadata={"help": "whether a new repository of the hub is private"})
    licence: str | None = field(
        default=None, metadata={"help": "of the weights, as mit; null: after the data set"}
    )
    seen: bool | None = field(
        default=None,
        metadata={"help": "with hashes of the training files; null: if all data sets are public"},
    )
    training_features: bool = field(
        default=False, metadata={"help": "publish a probe that holds features of single photographs"}
    )
    resamples: int = field(
        default=2000, metadata={"help": "of the bootstrap, for the card in the run's folder"}
    )


def work(paths: list[Path], settings: Settings) -> None:
    """Write a card, a folder or a repository, and say where it is.

    Args:
        paths: None are taken.
        settings: Of the command line.

    Raises:
        DrgradeError: If there is no such run, or it cannot be published.
    """
    if settings.checkpoint is None or paths:
        named = f" (checkpoint={paths[0]}?)" if paths else ""
        raise ConfigError(f"name a run's folder: drgrade publish checkpoint=RUN [to=FOLDER]{named}")
    if settings.resamples < 1:
        raise ConfigError(f"resamples={settings.resamples} is not a whole number of at least 1")
    print(_publish(settings.checkpoint, settings))


def _publish(run: Path, settings: Settings) -> str:
    from drgrade.model_card import card
    from drgrade.publishing import hub

    if not settings.to:
        return str(card.write_card(run, settings.resamples, settings.licence))
    if settings.to.startswith(hub.HUB):
        return hub.push_to_hub(
            run,
            settings.to.removeprefix(hub.HUB),
            private=settings.private,
            seen=settings.seen,
            training_features=settings.training_features,
            licence=settings.licence,
        )
    folder = hub.save_pretrained(
        run,
        settings.to,
        overwrite=settings.overwrite,
        seen=settings.seen,
        training_features=settings.training_features,
        licence=settings.licence,
    )
    return str(folder)


def main() -> None:
    """Run from the command line."""
    run(work, Settings(), USAGE)


if __name__ == "__main__":
    main()
