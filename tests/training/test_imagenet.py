"""init=imagenet: weights files instead of a download, and the errors without either."""

import json

import hydra
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from drgrade.cli.command import explain
from drgrade.config import CONF
from drgrade.errors import ConfigError, EncoderError
from drgrade.evaluation.evaluation import evaluate
from drgrade.files import file_sha256
from drgrade.models.msssl import MsSSL
from drgrade.training.build import make_encoder, make_photographs
from drgrade.training.pretraining import encoder_dir, pretext_config, run_facts
from drgrade.training.run import train

RESNET = ("encoder=timm", "encoder.name=test_resnet")


@pytest.fixture
def files(tmp_path):
    """Weights of a CNN and a Transformer with the classifiers of ImageNet, drawn at random."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in ("test_resnet", "test_vit"):
        state = timm.create_model(name, num_classes=1000).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def offline(monkeypatch):
    """Make every download fail at once."""
    real = timm.create_model

    def create(name, pretrained=False, **options):
        if pretrained and "pretrained_cfg_overlay" not in options:
            raise FileNotFoundError("cannot reach the hub")
        return real(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", create)


def test_weights_file_replaces_the_download(compose, files, offline):
    path = files / "test_resnet.safetensors"
    cfg = compose(*RESNET, "init=imagenet", f"encoder.weights={path}")
    encoder, want = make_encoder(cfg), load_file(path)
    assert torch.equal(encoder.model.conv1[0].weight, want["conv1.0.weight"])
    facts = run_facts(cfg, make_photographs(cfg), None)
    assert facts["init"] == facts["weights_file"] == "test_resnet.safetensors"
    assert facts["weights_hash"] == file_sha256(path)
    assert facts["pretraining_saw_test"] is None


def test_msssl_loads_a_weights_file_per_branch(compose, files, offline):
    paths = {"cnn": files / "test_resnet.safetensors", "vit": files / "test_vit.safetensors"}
    overrides = [f"+encoder.{part}_options.weights={path}" for part, path in paths.items()]
    cfg = compose("encoder=msssl", "init=imagenet", *overrides)
    encoder = make_encoder(cfg)
    cnn, vit = (load_file(path) for path in paths.values())
    assert torch.equal(encoder.conv_branch.backbone.state_dict()["conv1.0.weight"], cnn["conv1.0.weight"])
    assert torch.equal(encoder.vit_branch.backbone.blocks[0].attn.qkv.weight, vit["blocks.0.attn.qkv.weight"])
    facts = run_facts(cfg, make_photographs(cfg), None)
    assert {part: facts[f"{part}_options.weights_hash"] for part in paths} == {
        part: file_sha256(path) for part, path in paths.items()
    }


def test_failed_download_error_names_file_and_override(compose, offline):
    with pytest.raises(EncoderError) as caught:
        make_encoder(compose("encoder=densenet121", "init=imagenet"))
    message = explain(caught.value)
    assert "weights of densenet121 could not be downloaded (cannot reach the hub)" in message
    assert "encoder.weights=FILE (model.safetensors of timm/densenet121.ra_in1k, https://" in message
    assert "beside init=imagenet" in message


def test_failed_msssl_download_error_names_both_branches(compose, files, offline):
    with pytest.raises(EncoderError) as caught:
        make_encoder(compose("encoder=msssl", "scale=paper", "init=imagenet", "scale.cnn.name=resnet50"))
    message = explain(caught.value)
    assert "+encoder.cnn_options.weights=FILE (model.safetensors of timm/resnet50.a1_in1k" in message
    assert (
        "+encoder.vit_options.weights=FILE (model.safetensors of timm/vit_small_patch16_224.augreg" in message
    )
    given = f"+encoder.cnn_options.weights={files / 'test_resnet.safetensors'}"
    with pytest.raises(EncoderError) as caught:
        make_encoder(compose("encoder=msssl", "init=imagenet", given))
    assert "cnn_options" not in explain(caught.value)
    assert "+encoder.vit_options.weights=FILE (model.safetensors of timm/test_vit.r160_in1k" in str(
        caught.value
    )
    with pytest.raises(EncoderError) as caught:
        MsSSL("test_resnet", use_vit=False, pretrained=True)
    assert "vit" not in str(caught.value)


def test_model_without_published_weights_needs_a_file(compose):
    with pytest.raises(EncoderError, match=r"no published weights.*encoder\.weights=FILE"):
        make_encoder(compose("encoder=timm", "encoder.name=densenet264d", "init=imagenet"))


def test_evaluation_does_not_need_the_weights_file(compose, tmp_path, files, offline):
    path = files / "test_resnet.safetensors"
    record = train(compose(*RESNET, "init=imagenet", f"encoder.weights={path}", "trainer.max_steps=1"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["weights_hash"] == file_sha256(path)
    path.unlink()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        paths = [
            f"checkpoint={tmp_path / 'run'}",
            "own_run=true",
            f"paths.run={tmp_path / 'again'}",
            "trainer=cpu",
        ]
        again = evaluate(hydra.compose("evaluate", [*paths, f"paths.outputs={tmp_path}"])).metrics
    assert {**again, "evaluated": 0} == {**record, "evaluated": 0}


def key(cfg, grading=False):
    photographs = make_photographs(cfg)
    return encoder_dir(pretext_config(cfg, photographs) if grading else cfg, photographs).name


def test_pretraining_from_imagenet_is_reused_by_grading_runs(compose, files):
    path = files / "test_resnet.safetensors"
    pretext = (*RESNET, "task=pretext", f"encoder.weights={path}")
    by_init = key(compose(*pretext, "init=imagenet"))
    assert key(compose(*pretext, "pretext.init=imagenet")) == by_init
    wanted = compose(*RESNET, "init=ssl", "pretext.init=imagenet", f"encoder.weights={path}")
    assert key(wanted, grading=True) == by_init


def test_encoder_key_depends_on_file_content_not_path(compose, files):
    first = files / "test_resnet.safetensors"
    cfg = compose(*RESNET, "task=pretext", "init=imagenet", f"encoder.weights={first}")
    before = key(cfg)
    moved = first.rename(files / "moved.safetensors")
    cfg.encoder.weights = str(moved)
    assert key(cfg) == before
    save_file(timm.create_model("test_resnet").state_dict(), moved)
    assert key(cfg) != before
    assert key(compose(*RESNET, "task=pretext")) not in (before, key(cfg))


def test_pretraining_starts_from_the_weights_file(compose, tmp_path, files, offline):
    path = files / "test_resnet.safetensors"
    overrides = (*RESNET, "task=pretext", "pretext.init=imagenet", "pretext.optimizer.lr=0")
    train(compose(*overrides, f"encoder.weights={path}", "trainer.max_steps=1"))
    encoder = load_file(tmp_path / "run" / "encoder.safetensors")
    assert torch.equal(encoder["model.conv1.0.weight"], load_file(path)["conv1.0.weight"])
    card = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert card["init"] == card["weights_file"] == "test_resnet.safetensors"
    assert card["encoder"]["weights"] == file_sha256(path)


def test_pretext_init_must_be_random_or_imagenet(compose, offline):
    with pytest.raises(ConfigError, match=r"pretext\.init=ssl is not allowed"):
        train(compose(*RESNET, "task=pretext", "pretext.init=ssl"))
    with pytest.raises(EncoderError, match=r"test_resnet\.r160_in1k"):
        train(compose(*RESNET, "init=ssl", "pretext.init=imagenet"))
