"""Layer-wise learning-rate decay in training: every optimiser, every schedule, frozen epochs."""

from types import SimpleNamespace

import pytest
import torch

from drgrade.cli.command import explain
from drgrade.errors import ConfigError, EncoderError
from drgrade.training.build import instantiate, make_encoder
from drgrade.training.run import train

ENCODERS = {
    "densenet": ("encoder=densenet",),
    "vit": ("encoder=timm", "encoder.name=test_vit"),
    "msssl": ("encoder=msssl",),
    "resnet": ("encoder=timm", "encoder.name=resnet18"),
    "convnext": ("encoder=timm", "encoder.name=test_convnext"),
}


def configured(cfg, steps=10):
    """The task of a config, its optimiser and its schedule."""
    task = instantiate(cfg.grading.task, encoder=make_encoder(cfg))
    task._trainer = SimpleNamespace(estimated_stepping_batches=steps)
    made = task.configure_optimizers()
    return task, made["optimizer"], made["lr_scheduler"]["scheduler"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_parameter_has_the_learning_rate_of_its_layer(encoder, optimizer, compose):
    cfg = compose(
        *ENCODERS[encoder], f"optimizer={optimizer}", "optimizer.lr=0.1", "protocol.layer_decay=0.5"
    )
    task, made, _ = configured(cfg)
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(task.parameters()))
    depths = task.encoder.layer_depths()
    for name, parameter in task.named_parameters():
        depth = depths[name.removeprefix("encoder.")] if name.startswith("encoder.") else 0
        assert rates[id(parameter)] == pytest.approx(0.1 * 0.5**depth), name
    decays = {group.get("weight_decay", 0) for group in made.param_groups}
    assert decays == {cfg.optimizer.weight_decay}


@pytest.mark.parametrize("layer_decay", ["null", "0.5"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_norms_and_biases_have_no_weight_decay_if_asked(encoder, layer_decay, compose):
    settings = ("optimizer=adamw", "protocol.decay_norms=false", f"protocol.layer_decay={layer_decay}")
    task, made, _ = configured(compose(*ENCODERS[encoder], *settings))
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert len(decays) == len(list(task.parameters()))
    for name, module in task.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and kind == "weight"
            if matrix or "norm" in type(module).__name__.lower() or kind == "bias":
                assert decays[id(parameter)] == (0.05 if matrix else 0.0), f"{name}.{kind}"


def test_gradient_is_limited_unless_the_trainer_limits_it(compose, tmp_path):
    moved = {}
    settings = (
        "init=random",
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
        "optimizer.lr=1",
    )
    for run, limit in {
        "own": "protocol.gradient_clip=1e-3",
        "trainer": "trainer.gradient_clip_val=1e-3",
    }.items():
        both = () if run == "own" else ("protocol.gradient_clip=1e3",)
        train(compose(*settings, "optimizer.weight_decay=0", limit, *both, "trainer.max_steps=1", run=run))
        moved[run] = weights(tmp_path / run)
    assert same(moved["own"], moved["trainer"])


def test_schedule_scales_all_layers_equally(compose):
    _, optimizer, schedule = configured(
        compose("encoder=densenet", "schedule=cosine", "optimizer.lr=1", "protocol.layer_decay=0.5")
    )
    _, plain, reference = configured(compose("encoder=densenet", "schedule=cosine", "optimizer.lr=1"))
    shares = [group["lr_factor"] for group in optimizer.param_groups]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    for _ in range(10):
        rate = plain.param_groups[0]["lr"]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate * s for s in shares])
        for each, made in ((schedule, optimizer), (reference, plain)):
            made.step()
            each.step()


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SETTINGS = ("init=ssl", "protocol.epochs=3", "protocol.frozen_epochs=1", "schedule=cosine")


def test_layer_decay_of_one_changes_nothing(compose, tmp_path):
    for decay in ("null", "1.0"):
        train(compose(*SETTINGS, f"protocol.layer_decay={decay}", "trainer.max_steps=8", run=decay))
    assert same(weights(tmp_path / "null"), weights(tmp_path / "1.0"))


def test_invalid_layer_decay_is_refused_before_training(compose):
    with pytest.raises(ConfigError, match=r"protocol\.layer_decay=2 is not allowed: number > 0 and ≤ 1"):
        train(compose("init=random", "protocol.layer_decay=2"))
    with pytest.raises(EncoderError, match="timm does not define the layers of MetaFormer") as caught:
        train(compose("encoder=timm", "encoder.name=poolformer_s12", "protocol.layer_decay=0.5"))
    assert "protocol.layer_decay=null" in explain(caught.value)
