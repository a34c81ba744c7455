"""``drgrade publish``: publish a run as a folder or on the Hugging Face hub, or write its model card."""

from typing import Any

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.settings import PublishSettings


def work(cfg: DictConfig) -> None:
    """Write a model card, a folder or a repository, and print where it is.

    Args:
        cfg: The composed config (``conf/publish.yaml``).
    """
    from drgrade.model_card.card import write_model_card
    from drgrade.publishing.hub import HUB, push_to_hub, save_pretrained

    it = PublishSettings.read(cfg)
    names = ("seen", "training_features", "licence")
    given: dict[str, Any] = {name: getattr(it, name) for name in names}
    if not it.to:
        print(write_model_card(it.checkpoint, it.resamples, it.licence))
    elif it.to.startswith(HUB):
        print(push_to_hub(it.checkpoint, it.to.removeprefix(HUB), private=it.private, **given))
    else:
        print(save_pretrained(it.checkpoint, it.to, overwrite=it.overwrite, **given))


def main() -> None:
    """Run from the command line."""
    run(work, PublishSettings)


if __name__ == "__main__":
    main()
