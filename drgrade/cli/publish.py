"""``drgrade publish``: publish a run as a folder or on the Hugging Face hub, or write its model card."""

from typing import Any

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import PublishSettings


def work(cfg: DictConfig) -> None:
    """Write a model card, a folder or a repository, and print where it is."""
    from drgrade.model_card.card import write_model_card
    from drgrade.publishing.hub import HUB, push_to_hub, save_pretrained

    settings = PublishSettings.read(cfg)
    names = ("seen", "training_features", "licence")
    given: dict[str, Any] = {name: getattr(settings, name) for name in names}
    run_folder, target = settings.checkpoint, settings.to
    if not target:
        print(write_model_card(run_folder, settings.resamples, settings.licence))
    elif target.startswith(HUB):
        print(push_to_hub(run_folder, target.removeprefix(HUB), private=settings.private, **given))
    else:
        print(save_pretrained(run_folder, target, overwrite=settings.overwrite, **given))


def main() -> None:
    """Run from the command line."""
    run(work, PublishSettings)


if __name__ == "__main__":
    main()
