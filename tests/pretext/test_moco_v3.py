import json
import subprocess

import numpy as np
import pytest
import torch
from tiny import ENCODERS, losses, views, vit
from torch import nn

from drgrade.errors import ConfigError, EncoderError
from drgrade.pretext.moco_v3 import MoCoV3, info_nce
from drgrade.training.run import train

SMALL = {"hidden": 16, "dim": 8}


def made(make=vit, seed=0, side=32, **options):
    torch.manual_seed(seed)
    encoder = make(side)
    return encoder, MoCoV3(encoder, **{**SMALL, **options})


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_info_nce_equals_a_naive_loop(temperature):
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(4, 5)), rng.normal(size=(9, 5))
    total, found, cosine = 0.0, 0, 0.0
    for i, query in enumerate(queries):
        near = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys]
        shares = np.exp(np.array(near) / temperature)
        total -= 2 * temperature * np.log(shares[3 + i] / shares.sum())
        found += int(np.argmax(near) == 3 + i)
        cosine += near[3 + i]
    loss, scores = info_nce(torch.tensor(queries), torch.tensor(keys), 3, temperature)
    assert loss.item() == pytest.approx(total / 4)
    assert scores["accuracy"].item() == pytest.approx(found / 4)
    assert scores["similarity"].item() == pytest.approx(cosine / 4)


def test_identical_keys_give_the_loss_of_chance():
    loss, _ = info_nce(torch.randn(4, 8), torch.ones(16, 8), 0, 0.2)
    assert loss.item() == pytest.approx(2 * 0.2 * np.log(16), rel=1e-5)


def test_queries_are_compared_with_keys_of_the_other_view():
    encoder, pretext = made()
    with torch.no_grad():  # make the teacher differ from its student
        for each in pretext.teacher.encoder.parameters():
            each += 0.1 * torch.randn_like(each)
    pretext.eval()
    encoder.eval()
    seen = views(2, 4, 32)
    loss, scores = pretext(encoder, seen)
    queries = [pretext.predictor(pretext.projector(encoder(view))) for view in seen]
    keys = [pretext.teacher.head(pretext.teacher.encoder(view)) for view in seen]
    sides = [info_nce(queries[0], keys[1], 0, 0.2), info_nce(queries[1], keys[0], 0, 0.2)]
    assert loss.item() == pytest.approx(sum(side[0].item() for side in sides), rel=1e-5)
    for name in MoCoV3.scores:
        assert scores[name].item() == pytest.approx(sum(side[1][name].item() for side in sides) / 2, rel=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_heads_have_the_configured_layers(layers):
    _, pretext = made(projector_layers=layers)
    linear = [
        [m for m in head.modules() if isinstance(m, nn.Linear)]
        for head in (pretext.projector, pretext.predictor)
    ]
    assert [each.out_features for each in linear[0]] == [16] * (layers - 1) + [8]
    assert [each.out_features for each in linear[1]] == [16, 8]


@pytest.mark.parametrize(("name", "frozen"), [("vit", 2), ("msssl", 2), ("cnn", 0)])
def test_the_patch_embedding_can_be_frozen(name, frozen):
    torch.manual_seed(0)
    encoder = ENCODERS[name](32)
    if not frozen:
        with pytest.raises(EncoderError, match="no patch embedding"):
            MoCoV3(encoder, **SMALL, freeze_patch_embedding=True)
        return
    pretext = MoCoV3(encoder, **SMALL, freeze_patch_embedding=True)
    held = {n: p.clone() for n, p in encoder.named_parameters() if not p.requires_grad}
    assert len(held) == frozen
    assert all("patch_embed" in each for each in held)
    before = encoder.state_dict()
    before = {n: each.clone() for n, each in before.items()}
    losses(pretext, encoder, views(2, 4, 32), steps=2)
    for n, parameter in encoder.named_parameters():
        assert torch.equal(parameter, before[n]) == (n in held), n


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.5}, "momentum"),
        ({"hidden": 0}, "at least 1"),
        ({"projector_layers": 0}, "projector_layers"),
    ],
)
def test_settings_out_of_range_are_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        made(**options)


def test_views_other_than_two_of_one_size_are_refused():
    encoder, pretext = made()
    for seen in (views(3, 4, 32), [views(1, 4, 32)[0], views(1, 4, 64)[0]]):
        with pytest.raises(ConfigError, match="two of one size"):
            pretext(encoder, seen)


def test_channels_last_changes_results_by_rounding_only(compose):
    settings = ("pretext=moco_v3", "task=pretext", "trainer.precision=64-true")
    plain = train(compose(*settings, run="plain"))
    last = train(compose(*settings, "channels_last=true", run="last"))
    assert last["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-6)


@pytest.mark.slow
def test_a_run_on_two_processes_finishes(command, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run(
        command("pretext=moco_v3", "task=pretext", "trainer=ddp_cpu", f"paths.run={run}"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "metrics.json").read_text())["status"] == "finished"
    assert json.loads((run / "provenance.json").read_text())["devices"] == 2
