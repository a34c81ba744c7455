from functools import partial

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny import cnn, views
from torch import nn

from drgrade.config import CONF, choices
from drgrade.data.transforms import MaskedView, MultiView, SquareView
from drgrade.errors import ConfigError
from drgrade.pretext.base import Pretext
from drgrade.pretext.combination import COMMON, Combination, combine_views
from drgrade.pretext.rotation import Rotation
from drgrade.training.build import instantiate
from drgrade.training.run import train


class Distance(Pretext):
    """Pretext that reduces the distance of the features of two views and counts its steps."""

    scores = ("distance",)
    num_views = 2
    encoder_inputs = 2.0

    def __init__(self, encoder):
        super().__init__()
        self.layer = nn.Linear(encoder.num_features, 3)
        self.steps = []

    def before_step(self, encoder, progress):
        self.steps.append(progress)

    def forward(self, encoder, views):
        first, second = views
        distance = (self.layer(encoder(first)) - self.layer(encoder(second))).square().mean()
        return distance, {"distance": distance.detach().sqrt()}


class Teaching(Distance):
    """Pretext that saves another encoder than the trained one."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.teacher = cnn()

    def final_encoder(self, encoder):
        return self.teacher


def part(head, weight=1.0, **settings):
    return {"head": head, "views": SquareView(), "weight": weight, **settings}


def rotation(weight=1.0, **settings):
    return part(partial(Rotation, hidden=(8,)), weight, **settings)


def test_the_loss_is_the_weighted_sum_of_the_losses_of_the_parts():
    torch.manual_seed(0)
    encoder = cnn().eval()
    parts = {"turn": rotation(0.3), "distance": part(Distance, 2)}
    pretext = Combination(encoder, parts).eval()
    one, two, three = views(3)
    loss, scores = pretext(encoder, [one, two, three])
    turn, turn_scores = pretext.parts["turn"](encoder, [one])
    distance, distance_scores = pretext.parts["distance"](encoder, [two, three])
    torch.testing.assert_close(loss, 0.3 * turn + 2 * distance)
    expected = {f"turn/{name}": float(value) for name, value in turn_scores.items()}
    expected |= {f"distance/{name}": float(value) for name, value in distance_scores.items()}
    expected |= {"turn/loss": turn.item(), "distance/loss": distance.item()}
    assert {name: float(value) for name, value in scores.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in scores.values())


def test_weights_scale_gradients():
    def gradient(first, second):
        torch.manual_seed(0)
        encoder = cnn().eval()
        parts = {"turn": rotation(first), "distance": part(Distance, second)}
        pretext = Combination(encoder, parts)
        pretext(encoder, views(3))[0].backward()
        return torch.cat([each.grad.flatten() for each in encoder.parameters()])

    both, more = gradient(1, 1), gradient(3, 1)
    alone = (more - both) / 2  # loss of rotation
    torch.testing.assert_close(gradient(2, 1), both + alone, rtol=1e-3, atol=1e-6)
    assert alone.norm() > 1e-3


def test_attributes_combine_those_of_the_parts():
    pretext = Combination(cnn(), {"turn": rotation(), "near": part(Distance), "again": rotation()})
    assert pretext.num_views == 1 + 2 + 1
    assert pretext.encoder_inputs == 4 + 2 + 4
    _, scores = pretext(cnn(), views(4))
    assert set(scores) == set(pretext.scores)
    assert {"turn/accuracy", "again/accuracy", "near/distance", "near/loss"} <= set(scores)


def test_before_step_is_called_on_every_part():
    pretext = Combination(cnn(), {"one": part(Distance), "two": part(Distance)})
    pretext.before_step(cnn(), 0.0)
    pretext.before_step(cnn(), 0.5)
    assert [each.steps for each in pretext.parts.values()] == [[0.0, 0.5]] * 2


def test_parts_follow_the_mode_of_the_combination():
    pretext = Combination(cnn(), {"one": rotation(), "two": rotation()}).eval()
    assert not any(each.training for each in pretext.parts.values())


def test_the_final_encoder_is_the_trained_one_unless_a_part_has_a_teacher():
    encoder = cnn()
    assert Combination(encoder, {"one": rotation(), "two": rotation()}).final_encoder(encoder) is encoder
    with_teacher = Combination(encoder, {"one": rotation(), "two": part(Teaching)})
    assert with_teacher.final_encoder(encoder) is with_teacher.parts["two"].teacher


def test_two_parts_with_a_final_encoder_are_refused():
    with pytest.raises(ConfigError, match="one and two each replace"):
        Combination(cnn(), {"one": part(Teaching), "two": part(Teaching)})


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), None, "1", True])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ConfigError, match=rf"parts\.two\.weight={weight} is not a positive number"):
        Combination(cnn(), {"one": rotation(), "two": rotation(weight)})


@pytest.mark.parametrize("parts", [{}, {"one": rotation()}])
def test_fewer_than_two_parts_are_refused(parts):
    for make_something in (partial(Combination, cnn()), combine_views):
        with pytest.raises(ConfigError, match=f"at least two pretexts, not {len(parts)}"):
            make_something(parts)


@pytest.mark.parametrize("setting", COMMON)
def test_common_settings_of_a_part_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"parts\.two\.{setting} has no effect"):
        Combination(cnn(), {"one": rotation(), "two": rotation(**{setting: 3})})
    Combination(cnn(), {"one": rotation(), "two": rotation(**{setting: None})})


def test_views_of_the_parts_are_concatenated():
    square, masked = SquareView(size=16), MaskedView()
    made = combine_views(
        {
            "one": {"views": masked},
            "two": {"views": MultiView([square], [2])},
            "three": {"views": SquareView(size=24)},
        }
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for seed in (None, 3):
        assert [len(view) for view in made(image, 1.0, seed)] == [32, 16, 16, 24]
    np.testing.assert_array_equal(made(image, 1.0, None)[0], masked(image, 1.0, None))
    first, second = made(image, 1.0, 3)[1:3]
    assert not np.array_equal(first, second)


# --- conf/pretext


def common_settings():
    """Settings of conf/pretext/base.yaml for the length of the training and the optimiser."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        base = hydra.compose("train", ["pretext=base"]).pretext
    return {str(name) for name in base} - {"name", "head", "views"}


def test_configured_parts_have_no_common_settings():
    file = OmegaConf.load(CONF / "pretext" / "combination" / "part.yaml")
    assert {name for name, value in file.items() if value is None} == common_settings() == set(COMMON)


def combinations():
    """Files of conf/pretext that combine pretexts."""
    files = sorted((CONF / "pretext").glob("*.yaml"))
    return [file.stem for file in files if "combination/base" in file.read_text()]


def test_conf_contains_combinations():
    assert {"rotation_simclr", "rotation_inpainting"} <= set(combinations())


@pytest.mark.parametrize("name", combinations())
def test_parts_have_the_settings_of_their_pretexts(name, compose):
    cfg = compose(f"pretext={name}")
    assert cfg.pretext.name == name
    assert list(cfg.pretext.parts) == name.split("_")
    for each, settings in cfg.pretext.parts.items():
        alone = compose(f"pretext={each}").pretext
        assert resolved(settings.head) == resolved(alone.head)
        assert resolved(settings.views) == resolved(alone.views)


def test_overrides_of_a_part_are_applied_or_refused(compose):
    cfg = compose("pretext=rotation_simclr", "pretext.parts.rotation.head.hidden=[5]")
    pretext = instantiate(cfg.pretext.head)(cnn())
    assert pretext.parts["rotation"].head[0].out_features == 5
    assert pretext.weights == {"rotation": 1.0, "simclr": 0.1}
    cfg = compose("pretext=rotation_simclr", "pretext.parts.rotation.epochs=5")
    with pytest.raises(ConfigError, match=r"pretext\.parts\.rotation\.epochs has no effect"):
        instantiate(cfg.pretext.head)(cnn())


def test_a_run_logs_every_part_and_writes_an_encoder(compose):
    cfg = compose("pretext=rotation_simclr", "task=pretext", "pretext.parts.simclr.weight=0.5")
    metrics = train(cfg)
    for subset in ("train", "val"):
        sum_of_parts = metrics[f"{subset}/rotation/loss"] + 0.5 * metrics[f"{subset}/simclr/loss"]
        assert metrics[f"{subset}/loss"] == pytest.approx(sum_of_parts, rel=1e-5)
    assert 0 <= metrics["val/rotation/accuracy"] <= 1
    tensors = load_file(f"{cfg.paths.run}/encoder.safetensors")
    assert tensors
    assert not any("parts" in name for name in tensors)


@pytest.mark.parametrize("name", [each for each in choices("pretext") if each not in combinations()])
def test_every_pretext_can_be_a_part(name, compose):
    combined = compose(
        "pretext=combination/base",
        "pretext.name=two",
        f"+pretext@pretext.parts.first={name}",
        "+pretext/combination@pretext.parts.first=part",
        "+pretext@pretext.parts.second=rotation",
        "+pretext/combination@pretext.parts.second=part",
    )
    own, alone = resolved(combined.pretext.parts.first), resolved(compose(f"pretext={name}").pretext)
    assert (own["head"], own["views"]) == (alone["head"], alone["views"])
    assert all(own[setting] is None for setting in COMMON)


def resolved(node):
    return OmegaConf.to_container(node, resolve=True)
