"""The contract of a pretext, tested on all of them."""

import copy

import pytest
import torch
from interrupted import interrupted_and_straight
from safetensors.torch import load_file
from tiny import ENCODERS, PRETEXTS, SIDE, losses, one_size, pictures, views_for, vit, without_gradient

from drgrade.config import choices
from drgrade.data.datamodules import PretextDataModule
from drgrade.errors import ConfigError, EncoderError
from drgrade.tasks import PretextTask
from drgrade.training.build import instantiate, make_encoder, make_photographs, seed_everything
from drgrade.training.run import train

NEEDS_TRANSFORMER = ("mae",)
PATCHES = ("relative_patch", "jigsaw", "cpc")
DENSE = ("colorization", "inpainting", "saliency")
FILES = choices("pretext")


def trainable(name, encoder):
    """Only a plain Vision Transformer can omit masked patches."""
    return encoder == "vit" or not set(name.split("_")) & set(NEEDS_TRANSFORMER)


PAIRS = [(name, encoder) for name in PRETEXTS for encoder in ENCODERS if trainable(name, encoder)]
FILE_PAIRS = [(name, encoder) for name in FILES for encoder in ENCODERS]


def build(name, encoder="vit", side=SIDE, seed=0):
    torch.manual_seed(seed)
    made = ENCODERS[encoder](side) if isinstance(encoder, str) else encoder
    return made, PRETEXTS[name](made, side)


def test_every_config_has_a_tiny_pretext():
    combined = {name for name in FILES if "_" in name and set(name.split("_")) <= set(FILES)}
    assert set(FILES) - combined == set(PRETEXTS) - {"combination"}


# --- one batch


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_every_parameter_but_the_teachers_gets_a_gradient(name, encoder):
    """Use two draws: timm initialises some normalisations with zero, and a few ReLUs may be inactive."""
    missing = []
    for seed in (0, 1):
        made, pretext = build(name, encoder, seed=seed)
        with torch.no_grad():
            for parameter_name, parameter in made.named_parameters():
                if parameter_name.endswith("weight") and parameter.ndim == 1:
                    parameter.fill_(1)
            for parameter_name, parameter in pretext.named_parameters():
                if parameter_name.startswith("teacher."):  # make it differ from its student
                    parameter += 0.1 * torch.randn_like(parameter)
        missing.append(set(without_gradient(pretext, made, views_for(name, 8, seed=seed))))
        teacher = [each for key, each in pretext.named_parameters() if key.startswith("teacher.")]
        assert all(each.grad is None for each in teacher)
    assert not missing[0] & missing[1]


@pytest.mark.parametrize("name", PRETEXTS)
def test_scores_are_detached_finite_and_declared(name):
    encoder, pretext = build(name)
    loss, scores = pretext(encoder, views_for(name))
    assert loss.isfinite()
    assert set(scores) == set(pretext.scores)
    assert all(value.isfinite() and not value.requires_grad for value in scores.values())
    assert len(views_for(name)) == pretext.num_views


@pytest.mark.parametrize("name", PRETEXTS)
def test_the_encoder_is_not_modified_or_registered(name):
    torch.manual_seed(0)
    encoder = vit()
    before = copy.deepcopy(encoder.state_dict())
    _, pretext = build(name, encoder)
    assert encoder.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert not {id(each) for each in encoder.parameters()} & {id(each) for each in pretext.parameters()}
    assert pretext.final_encoder(encoder).state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", PRETEXTS)
def test_evaluation_is_repeatable_and_does_not_draw_from_the_global_generator(name):
    encoder, pretext = build(name)
    encoder.eval()
    if name in (*PATCHES, "inpainting", "mae"):  # the others are deterministic
        assert pretext(encoder, views_for(name))[0] != pretext(encoder, views_for(name))[0]
    pretext.eval()
    state = torch.get_rng_state()
    assert pretext(encoder, views_for(name))[0] == pretext(encoder, views_for(name))[0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(set(PRETEXTS) - {"mae"}))
def test_encoder_inputs_is_the_number_of_encoded_pixels(name):
    encoder, pretext = build(name)
    seen = []
    forward, feature_map = encoder.forward, encoder.feature_map
    encoder.forward = lambda images: seen.append(images.numel()) or forward(images)
    encoder.feature_map = lambda images: seen.append(images.numel()) or feature_map(images)
    pretext(encoder, views_for(name))
    assert sum(seen) / views_for(name)[0].numel() == pytest.approx(pretext.encoder_inputs)


@pytest.mark.parametrize("name", PRETEXTS)
def test_the_loss_agrees_in_bfloat16_and_float64(name):
    encoder, pretext = build(name)
    encoder.eval()
    pretext.eval()
    seen = views_for(name)
    plain = pretext(encoder, seen)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = pretext(encoder, seen)[0]
    assert half.isfinite()
    assert half.item() == pytest.approx(plain.item(), rel=0.1)
    if name in (*DENSE, "rotation", "simclr", "exemplar"):
        assert name == "rotation" or half.dtype == torch.float32
        double = pretext.double()(encoder.double(), [each.double() for each in seen])[0]
        assert double.dtype == torch.float64
        assert double.item() == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["simclr", "exemplar", "moco_v3"])
@pytest.mark.parametrize("training", [True, False])
def test_contrastive_pretexts_refuse_a_batch_of_one(name, training):
    encoder, pretext = build(name)
    assert pretext.min_photographs == 2
    with pytest.raises(ConfigError, match=r"compares the photographs of a batch.*pretext\.batch_size"):
        pretext.train(training)(encoder, views_for(name, 1))


@pytest.mark.parametrize("name", PRETEXTS)
def test_one_batch_can_be_overfitted(name):
    encoder, side = ("vit", SIDE) if name in ("mae", "moco_v3") else ("cnn", 32 if name in DENSE else SIDE)
    made, pretext = build(name, encoder, side)
    pretext.eval()  # equal random numbers in every step
    seen = [pictures(8)] if name == "mae" else views_for(name, 8, side)
    if len(seen) > 1:  # views of one photograph are similar
        seen = [
            seen[0],
            *(seen[0] + 0.3 * each if each.shape == seen[0].shape else each for each in seen[1:]),
        ]
    found = losses(pretext, made, seen, steps=20, lr=2e-3 if encoder == "vit" else 1e-2)
    assert found[-1] < (0.9 if name in ("relative_patch", "mae") else 0.8) * found[0]


# --- encoders that cannot be trained


@pytest.mark.parametrize("name", [*PATCHES, "dino"])
def test_an_encoder_of_fixed_size_is_refused_where_images_are_smaller(name):
    with pytest.raises(EncoderError, match=rf"pretext={name} cannot train .* one size only"):
        build(name, one_size())


@pytest.mark.parametrize(("name", "encoder"), [each for each in FILE_PAIRS if not trainable(*each)])
def test_an_unsuitable_encoder_is_refused_with_an_alternative(name, encoder, configured):
    with pytest.raises(EncoderError, match=r"pretext=\w+ cannot train this encoder .*; use "):
        task(configured(name, encoder))


# --- the files of conf/pretext


@pytest.fixture
def configured(compose):
    groups = {"cnn": "densenet", "vit": "vit", "msssl": "msssl"}

    def make_config(pretext, encoder):
        return compose(f"pretext={pretext}", f"encoder={groups[encoder]}", f"data.image_size={SIDE}")

    return make_config


def task(cfg):
    """Build the task as drgrade.training.pretraining does."""
    seed_everything(cfg.pretext.seed)
    made = instantiate(cfg.pretraining.task, encoder=make_encoder(cfg))
    assert isinstance(made, PretextTask)
    return made


@pytest.fixture(scope="module")
def batches():
    """``batches(cfg)``: training and validation views, the same for all encoders."""
    kept = {}

    def of(cfg):
        if cfg.pretext.name not in kept:
            data = instantiate(cfg.pretraining.datamodule, photographs=make_photographs(cfg))
            assert isinstance(data, PretextDataModule)
            data.prepare_data()
            data.setup()
            kept[cfg.pretext.name] = [
                data.on_after_batch_transfer(next(iter(loader)), 0)["views"]
                for loader in (data.train_dataloader(), data.val_dataloader())
            ]
        return kept[cfg.pretext.name]

    return of


@pytest.mark.parametrize(("name", "encoder"), [each for each in FILE_PAIRS if trainable(*each)])
def test_a_configured_step_gives_every_branch_of_the_encoder_a_gradient(name, encoder, configured, batches):
    cfg = configured(name, encoder)
    made = task(cfg)
    learnt, held_out = batches(cfg)
    assert len(learnt) == made.pretext.num_views
    before = copy.deepcopy(made.encoder.state_dict())
    optimizer = instantiate(cfg.pretext.optimizer)([each for each in made.parameters() if each.requires_grad])
    made.pretext.before_step(made.encoder, 0.0)
    loss, scores = made.pretext(made.encoder, learnt)
    loss.backward()
    optimizer.step()
    assert all(value.isfinite() for value in (loss, *scores.values()))
    for branch, child in made.encoder.named_children():
        parameters = list(child.parameters())
        assert not parameters or any(
            each.grad is not None and each.grad.abs().sum() > 0 for each in parameters
        ), branch
    assert any(not torch.equal(before[key], now) for key, now in made.encoder.state_dict().items())
    made.eval()
    with torch.no_grad():
        assert made.pretext(made.encoder, held_out)[0].isfinite()


@pytest.mark.parametrize("name", sorted(set(FILES) - {"dino", "moco_v3", "colorization"}))
def test_a_run_logs_its_scores_and_writes_the_encoder_without_head(name, compose):
    encoder = ["encoder=vit", "+scale.vit.options.depth=2"] if name == "mae" else []
    cfg = compose(f"pretext={name}", "task=pretext", "pretext.val_fraction=0.1", *encoder)
    metrics = train(cfg)
    assert metrics["status"] == "finished"
    expected = {"loss", *task(cfg).pretext.scores}
    for subset in ("train", "val"):
        assert all(torch.tensor(metrics[f"{subset}/{score}"]).isfinite() for score in expected)
    for score in (each for each in expected if each.rpartition("/")[2].startswith("accuracy")):
        assert 0 <= metrics[f"val/{score}"] <= 1
    assert metrics["val/feature_std"] > 0
    tensors = load_file(f"{cfg.paths.run}/encoder.safetensors")
    assert tensors.keys() == make_encoder(cfg).state_dict().keys()


@pytest.mark.parametrize("name", ["moco_v3", "dino", "colorization"])
def test_a_resumed_run_equals_an_uninterrupted_one(name, compose, tmp_path, monkeypatch):
    """These pretexts have a state besides their weights: teacher, centre, distribution of colours."""
    settings = [f"pretext={name}", "task=pretext", "pretext.epochs=2"]
    settings += ["pretext.local_views=2"] if name == "dino" else []
    straight, resumed = interrupted_and_straight(compose, tmp_path, monkeypatch, *settings)
    assert straight["metrics"]["status"] == "finished"
    for part in ("state", "encoder"):
        assert straight[part].keys() == resumed[part].keys()
        for key, tensor in straight[part].items():
            assert torch.equal(tensor, resumed[part][key]), key
    kept = {"moco_v3": "teacher.encoder", "dino": "loss.center", "colorization": "histogram"}[name]
    assert any(key.startswith(f"pretext.{kept}") for key in straight["state"])
    final = "pretext.teacher.encoder." if name == "dino" else "encoder."
    for key, tensor in straight["encoder"].items():
        assert torch.equal(tensor, straight["state"][final + key]), key


def test_a_pre_trained_encoder_can_be_fine_tuned(compose, tmp_path):
    train(compose("pretext=jigsaw", "task=pretext", run="pretext"))
    graded = train(compose(f"init={tmp_path / 'pretext'}", "steps.grading=1", "trainer.max_epochs=1"))
    assert graded["status"] == "finished"
