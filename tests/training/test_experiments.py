"""Every experiment file composes, trains, and follows its protocol."""

import hydra
import pytest
import torch
from hydra.errors import ConfigCompositionException

from drgrade.config import CONF, choices
from drgrade.training.run import train

EXPERIMENTS = choices("experiment")
OTHER_FRACTIONS = {f"{method}_{share}pct" for method in ("rotation", "msssl") for share in (5, 25, 50, 100)}


@pytest.mark.parametrize("experiment", sorted(OTHER_FRACTIONS))
def test_experiments_of_a_system_differ_in_the_label_fraction(experiment):
    method, share = experiment.removesuffix("pct").split("_")
    cfg, other = plain(f"+experiment={experiment}"), plain(f"+experiment={method}_10pct")
    assert (cfg.label_fraction, cfg.name) == (int(share) / 100, experiment)
    cfg.label_fraction, cfg.name = other.label_fraction, other.name
    assert cfg == other


@pytest.mark.parametrize("experiment", sorted({*EXPERIMENTS} - OTHER_FRACTIONS))
def test_every_experiment_trains_two_steps_on_the_demo(experiment, compose):
    cfg = compose(f"+experiment={experiment}", "trainer.max_steps=2", "pretext.max_steps=2")
    metrics = train(cfg)
    assert metrics["status"] == "finished"
    assert ("test/qwk" in metrics) == (cfg.task == "grading")
    checkpoint = torch.load(f"{cfg.paths.run}/checkpoints/last.ckpt", weights_only=True)
    fitted = cfg.task == "grading" and cfg.protocol.probe is not None
    assert checkpoint["global_step"] == (0 if fitted else 2)


@pytest.mark.parametrize(
    ("method", "protocol", "seen"), [("rotation", "published", "all"), ("msssl", "matched", "train")]
)
def test_experiment_follows_its_paper_and_can_be_overridden(method, protocol, seen, compose):
    cfg = compose(f"+experiment={method}_10pct")
    assert (cfg.protocol.name, cfg.pretrain_on, cfg.label_fraction) == (protocol, seen, 0.1)
    assert compose(f"+experiment={method}_10pct", "protocol=published").protocol.name == "published"


def test_paper_scale_matches_the_papers():
    cfg = plain("+experiment=rotation_10pct", "data=idrid", "data.root=x")
    assert (cfg.data.image_size, cfg.data.batch_size) == (224, 32)
    assert (cfg.pretext.epochs, cfg.pretext.optimizer.lr, cfg.pretext.head.hidden) == (
        200,
        1e-5,
        [2048, 1024],
    )
    assert (cfg.protocol.epochs, cfg.protocol.frozen_epochs, cfg.protocol.val_fraction) == (20, 3, 0.05)
    assert (cfg.optimizer.lr, cfg.head.hidden, cfg.head.dropout) == (5e-5, 1024, 0.5)
    assert (cfg.augment.zoom, cfg.augment.horizontal_flip, cfg.augment.vertical_flip) == (
        [0.85, 1.15],
        True,
        True,
    )


def test_scale_follows_the_data_and_can_be_overridden():
    assert plain("+experiment=msssl_10pct").scale.name == "demo"
    assert plain("+experiment=msssl_10pct", "data=idrid", "data.root=x").scale.name == "paper"
    assert plain("+experiment=msssl_10pct", "data=idrid", "data.root=x", "scale=small").scale.name == "small"


def plain(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def test_unknown_setting_is_refused(compose):
    with pytest.raises(ConfigCompositionException):
        compose("trainer.max_epoch=3")


@pytest.mark.parametrize("protocol", ["published", "matched"])
@pytest.mark.parametrize(
    ("first_weights", "freezes"),
    [
        (["init=random"], False),
        (["init=imagenet"], True),
        (["init=ssl"], True),
        (["init=runs/encoder"], True),
        (["init=random", "encoder.weights=a.safetensors"], True),
        (["init=random", "encoder=msssl", "+encoder.cnn_options.weights=a.safetensors"], True),
    ],
)
def test_random_weights_are_never_frozen(protocol, first_weights, freezes, compose):
    cfg = compose(f"protocol={protocol}", "protocol.frozen_epochs=2", *first_weights)
    assert cfg.grading.task.frozen_epochs == (2 if freezes else 0)
