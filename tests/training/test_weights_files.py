"""Weights from a file are named after it, with its hash and what it says of itself."""

import json

import pytest
import torch
from safetensors.torch import save_file
from wandb_files import offline_runs

from drgrade.files import file_sha256
from drgrade.model_card.card import render_model_card
from drgrade.model_card.facts import read_run_files
from drgrade.models.encoder import CARD, WEIGHTS, stated_origin
from drgrade.runs.settings import describe_weights_files, first_weights, published_weights
from drgrade.training.build import make_encoder
from drgrade.training.run import train

RESNET = ("encoder=timm", "encoder.name=test_resnet")
TENSORS = {"a": torch.zeros(2)}
MSSSL = {"cnn": "resnet10t", "cnn_options": {}, "vit": "test_vit", "vit_options": {}}


@pytest.mark.parametrize(
    ("init", "encoder", "expected"),
    [
        ("random", {"weights": None}, "random"),
        ("imagenet", {"weights": None}, "imagenet"),
        ("ssl", {"weights": "a/b.pth"}, "ssl"),
        ("runs/one", {"weights": None}, "runs/one"),
        ("random", {"weights": "a/b.pth"}, "b.pth"),
        ("imagenet", {"weights": "a/b.pth"}, "b.pth"),
        ("random", {"options": {"weights": "a/b.pth"}}, "b.pth"),
        ("random", {"pretrained": True}, "imagenet"),
        ("random", {"options": {"pretrained": True}}, "imagenet"),
        ("random", {"weights": "here/random"}, "random (file)"),
        ("imagenet", {**MSSSL, "cnn_options": {"weights": "c.pth"}}, "c.pth (cnn), rest ImageNet weights"),
        ("random", {**MSSSL, "vit_options": {"weights": "v.pth"}}, "v.pth (vit), rest random"),
        (
            "random",
            {**MSSSL, "cnn_options": {"weights": "c.pth"}, "vit_options": {"weights": "v.pth"}},
            "c.pth (cnn), v.pth (vit)",
        ),
    ],
)
def test_first_weights_are_named_after_their_file_whatever_init_is(init, encoder, expected):
    assert first_weights({"init": init, "encoder": encoder}) == expected


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ({"name": "resnet18.a1_in1k"}, "ImageNet"),
        ({"name": "densenet121"}, "ImageNet"),
        ({"name": "vit_small_patch16_224.dino"}, "vit_small_patch16_224.dino"),
        ({"name": "vit_small_patch16_224.augreg_in21k"}, "vit_small_patch16_224.augreg_in21k"),
        ({"name": "vit_base_patch16_224.augreg_in21k_ft_in1k"}, "vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ({"name": "vit_base_patch14_dinov2"}, "vit_base_patch14_dinov2"),
        ({"name": "hf-hub:somebody/model"}, "model"),
        ({"cnn": "resnet50.tv_in1k", "vit": "vit_base_patch16_224.mae"}, "vit_base_patch16_224.mae"),
    ],
)
def test_published_weights_of_another_training_are_not_called_imagenet(encoder, expected):
    assert published_weights(encoder) == expected


def test_file_of_a_config_without_paths_is_still_neither_random_nor_imagenet():
    config = {"init": "random", "encoder": {"weights": None}}
    earlier = {"weights_hash": "f" * 64}
    assert first_weights(config, earlier) == "file (name not recorded)"
    assert first_weights(config, {**earlier, "weights_file": "b.pth"}) == "b.pth"
    (text,) = describe_weights_files(config, earlier)
    assert text == (
        "file (name not recorded), SHA-256 ffffffffffff, what it says of its origin is not recorded"
    )


def test_files_are_described_by_name_hash_and_statement():
    config = {"init": "imagenet", "encoder": {**MSSSL, "vit_options": {"weights": "x/v.pth"}}}
    record = {"vit_options.weights_hash": "a" * 64, "vit_options.weights_says": "arch=vit"}
    assert describe_weights_files(config, record) == ["v.pth (vit), SHA-256 aaaaaaaaaaaa, says: arch=vit"]
    record["vit_options.weights_says"] = ""
    assert describe_weights_files(config, record)[0].endswith("says nothing of its origin")
    assert describe_weights_files({"init": "ssl", "encoder": {"weights": None}}, {"encoder_hash": "b"}) == []
    given = {"encoder_hash": "b" * 64, "encoder_file": "one", "encoder_says": "pretext=rotation"}
    assert describe_weights_files({"init": "x/one", "encoder": {}}, given) == [
        "one, SHA-256 bbbbbbbbbbbb, says: pretext=rotation"
    ]


def test_safetensors_file_states_its_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    assert stated_origin(path) == ""
    save_file(TENSORS, path, {"format": "pt", "source": "ImageNet-1k,\nby somebody" + "x" * 300})
    assert stated_origin(path).startswith("source=ImageNet-1k, by somebody")
    assert len(stated_origin(path)) == 200


def test_file_of_torch_states_the_values_beside_its_tensors(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"arch": "vit_small", "epoch": 300, "state_dict": TENSORS}, path)
    assert stated_origin(path) == "arch=vit_small; epoch=300"
    torch.save(TENSORS, path)
    assert stated_origin(path) == ""
    path.write_bytes(b"no archive")
    assert stated_origin(path) == ""


def test_card_counts_only_for_the_weights_that_it_describes(tmp_path):
    path = tmp_path / WEIGHTS
    save_file(TENSORS, path)
    card = {"sha256": file_sha256(path), "pretext": {"name": "rotation"}, "data": "idrid", "steps": 300}
    (tmp_path / CARD).write_text(json.dumps(card))
    assert stated_origin(path) == "pretext=rotation; data=idrid; steps=300"
    save_file({"b": torch.ones(3)}, path)
    assert stated_origin(path) == ""


def test_run_from_a_file_names_it_in_metrics_card_and_wandb(compose, tmp_path, monkeypatch):
    path = tmp_path / "found.safetensors"
    encoder = make_encoder(compose(*RESNET)).model
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, path)
    record = train(compose(*RESNET, f"encoder.weights={path}", "logger=wandb", "trainer.max_steps=1"))
    digest = file_sha256(path)
    assert (record["init"], record["weights_file"]) == ("found.safetensors", "found.safetensors")
    assert (record["weights_hash"], record["weights_says"]) == (digest, "")
    (logged,) = offline_runs(tmp_path / "run")
    assert "init=found.safetensors" in logged.run.tags
    assert logged.config["init"] == logged.summary["init"] == "found.safetensors"
    assert "init=random" not in logged.run.tags
    card = render_model_card(read_run_files(tmp_path / "run"), resamples=20)
    (line,) = (line for line in card.splitlines() if line.startswith("| first weights"))
    assert f"from found.safetensors, SHA-256 {digest[:12]}, says nothing of its origin" in line
    assert "random" not in line
    assert "self-supervised" not in card
