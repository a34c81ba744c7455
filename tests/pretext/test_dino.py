import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from tiny import cnn, losses, one_size, views, vit

from drgrade.config import CONF
from drgrade.errors import ConfigError, EncoderError
from drgrade.metrics.functional import effective_rank, feature_std
from drgrade.pretext.dino import DINO

SMALL = {"image_size": 32, "local_views": 0, "output_dim": 16, "hidden": 16, "bottleneck": 8}


def made(make=vit, seed=0, **options):
    torch.manual_seed(seed)
    options = {**SMALL, **options}
    encoder = make(options["image_size"])
    return encoder, DINO(encoder, **options)


def crops(local_views, batch=4, side=32, local_size=16):
    return views(2, batch, side) + views(local_views, batch, local_size, seed=1)


def apart(pretext, seed=3):
    """Set the weights of the teacher and the centre to values that differ from the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in pretext.teacher.parameters():
            each += 0.1 * torch.randn(each.shape, generator=generator)
        pretext.loss.center += 0.1 * torch.randn(pretext.loss.center.shape, generator=generator)


@pytest.mark.parametrize("local_views", [0, 3])
def test_the_loss_equals_a_naive_loop_over_pairs_of_views(local_views):
    encoder, pretext = made(local_views=local_views, local_size=16)
    apart(pretext)
    pretext.eval()
    encoder.eval()
    seen = crops(local_views)
    centre = pretext.loss.center.flatten().double().numpy()
    with torch.no_grad():
        student = [pretext.head(encoder(view)).double().numpy() for view in seen]
        teacher = [pretext.teacher(view).double().numpy() for view in seen[:2]]
    total, entropy, pairs = 0.0, 0.0, 0
    for t, taught in enumerate(teacher):
        shares = np.exp((taught - centre) / 0.04)
        shares /= shares.sum(axis=1, keepdims=True)
        entropy -= (shares * np.log(shares)).sum(axis=1).mean() / 2
        for s, output in enumerate(student):
            if s == t:
                continue
            logits = output / 0.1
            logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            total -= (shares * logs).sum(axis=1).mean()
            pairs += 1
    loss, scores = pretext(encoder, seen)
    assert loss.item() == pytest.approx(total / pairs, rel=1e-4)
    assert scores["teacher_entropy"].item() == pytest.approx(entropy, rel=1e-4)
    assert scores["divergence"].item() == pytest.approx(total / pairs - entropy, rel=1e-3)
    assert scores.keys() == set(DINO.scores)


def distilled(seed, **options):
    """Return features of 16 photographs; mutual information of photograph and teacher's output in nats."""
    encoder, pretext = made(
        seed=seed, output_dim=32, hidden=64, bottleneck=16, momentum=0.9, freeze_last_layer=0, **options
    )
    optimizer = torch.optim.Adam(
        [p for m in (encoder, pretext) for p in m.parameters() if p.requires_grad], 1e-3
    )
    photographs = torch.randn(16, 3, 32, 32)
    for step in range(100):
        pretext.before_step(encoder, step / 100)
        loss, _ = pretext(encoder, [photographs + 0.3 * torch.randn_like(photographs) for _ in range(2)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    pretext.eval()
    with torch.no_grad():
        output = pretext.teacher(photographs) - pretext.loss.center[0]
        shares = (output / pretext.temperature(1.0)).softmax(dim=1)
        information = (
            torch.special.entr(shares.mean(dim=0)).sum() - torch.special.entr(shares).sum(dim=1).mean()
        )
        return encoder(photographs), float(information)


def test_centring_and_sharpening_prevent_collapse():
    features, information = distilled(0, teacher_temperature=(0.04, 0.04))
    collapsed, none = distilled(0, teacher_temperature=(0.1, 0.1), centring=False)
    assert information > 0.4
    assert none < 0.05
    assert feature_std(features) > 0.6
    assert feature_std(collapsed) < 0.35
    assert effective_rank(features) > 2


def test_the_last_layer_is_frozen_at_the_start():
    encoder, pretext = made(freeze_last_layer=0.5)
    optimizer = torch.optim.AdamW(
        [p for m in (encoder, pretext) for p in m.parameters() if p.requires_grad], 1e-2
    )
    last, changed, others = pretext.head.last_layer.weight_v, [], []
    assert any(each is last for each in optimizer.param_groups[0]["params"])
    for step in range(6):
        before, other = last.detach().clone(), pretext.head.layers[0].weight.detach().clone()
        pretext.before_step(encoder, step / 6)
        optimizer.zero_grad()
        pretext(encoder, crops(0))[0].backward()
        optimizer.step()
        changed.append(not torch.equal(last, before))
        others.append(not torch.equal(pretext.head.layers[0].weight, other))
    assert changed == [False] * 3 + [True] * 3
    assert all(others)


@pytest.mark.parametrize("normalised", [True, False])
def test_norm_last_layer_keeps_the_length_of_rows(normalised):
    encoder, pretext = made(norm_last_layer=normalised, freeze_last_layer=0.2)
    losses(pretext, encoder, crops(0), steps=5)
    assert torch.equal(pretext.head.last_layer.weight_g, torch.ones(16, 1)) == normalised


def test_the_teacher_temperature_rises_during_the_warm_up():
    _, pretext = made(teacher_temperature=(0.04, 0.07), temperature_warmup=0.2)
    found = [pretext.temperature(progress) for progress in (0.0, 0.1, 0.2, 0.9)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert made(temperature_warmup=0)[1].temperature(0.0) == pytest.approx(0.07)


def test_the_centre_moves_once_per_step_and_never_in_validation():
    encoder, pretext = made(momentum=1.0, centre_momentum=0.8)
    loss = pretext.loss
    batches = [views(2, 4, 32, seed=seed) for seed in range(3)]
    output = [pretext.teacher(torch.cat(seen)).mean(dim=0) for seen in batches]
    for seen in batches[:2]:  # accumulated into one step
        pretext.before_step(encoder, 0.0)
        pretext(encoder, seen)
        assert torch.equal(loss.center, torch.zeros(1, 1, 16))
    pretext.eval()
    pretext(encoder, batches[2])
    pretext.train()
    pretext.before_step(encoder, 0.1)
    expected = 0.2 * (output[0] + output[1]) / 2
    torch.testing.assert_close(loss.center[0, 0], expected)
    pretext(encoder, batches[2])
    pretext.before_step(encoder, 0.2)
    torch.testing.assert_close(loss.center[0, 0], 0.8 * expected + 0.2 * output[2])
    assert {"loss.center", "loss.pending", "loss.batches"} <= pretext.state_dict().keys()


def test_encoder_inputs_counts_views_by_their_pixels():
    _, pretext = made(cnn, image_size=64, local_views=3, local_size=32)
    assert pretext.num_views == 5
    assert pretext.encoder_inputs == pytest.approx(2 + 3 / 4)


@pytest.mark.parametrize(
    "seen", [crops(0), crops(2), crops(4), crops(3, local_size=32), crops(3, side=64)], ids=list("abcde")
)
def test_unexpected_views_are_refused(seen):
    encoder, pretext = made(local_views=3, local_size=16)
    with pytest.raises(ConfigError, match=r"views of \[.*expects \[32, 32, 16, 16, 16\].*local_views"):
        pretext(encoder, seen)


def test_an_encoder_of_fixed_size_is_refused_with_local_views():
    with pytest.raises(EncoderError, match=r"dino.*one size only"):
        made(one_size, local_views=2, local_size=16)
    encoder, pretext = made(one_size)
    assert pretext(encoder, crops(0))[0].isfinite()


def test_local_views_too_small_for_a_cnn_are_refused():
    with pytest.raises(ConfigError, match=r"local_size=8.*too small"):
        made(cnn, local_views=2, local_size=8)


@pytest.mark.parametrize(
    "options",
    [
        {"local_views": -1},
        {"output_dim": 0},
        {"centre_momentum": 1.5},
        {"momentum": -1.0},
        {"freeze_last_layer": 2.0},
        {"temperature_warmup": -0.1},
        {"teacher_temperature": (0.04, 0.0)},
        {"teacher_temperature": (0.04,)},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        made(**options)


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", ["task=pretext", "trainer=cpu", "logger=none", *overrides])


@pytest.mark.parametrize(
    ("overrides", "sides"),
    [
        (("pretext=moco_v3",), [96, 96]),
        (("pretext=dino",), [96] * 2 + [48] * 6),
        (("pretext=dino", "pretext.local_size=40", "pretext.local_views=3"), [96] * 2 + [40] * 3),
        (("pretext=dino", "data.image_size=48"), [48] * 2 + [32] * 6),
        (("pretext=dino", "pretext.local_views=0"), [96] * 2),
    ],
)
def test_configured_views_show_recorded_pixels_only(overrides, sides):
    cfg = composed(*overrides)
    see = instantiate(cfg.pretext.views, _convert_="all")
    y, x = np.mgrid[: sides[0], : sides[0]] - (sides[0] - 1) / 2
    for clear in (0.6, 0.86, 1.0):
        inside = (np.hypot(x, y) <= clear * sides[0] / 2)[..., None]
        green, red = np.array([0, 90, 0]), np.array([255, 0, 255])  # jitter cannot turn one into the other
        marked = np.where(inside, green, red).astype(np.uint8)
        for seed in (None, *range(15)):
            seen = see(marked, clear, seed)
            assert [view.shape[0] for view in seen] == sides
            # Each view has one colour, because the jitter is the same for all pixels.
            assert all(np.ptp(view.reshape(-1, 3), axis=0).max() <= 3 for view in seen)
    encoder = instantiate(cfg.encoder, _convert_="all")
    pretext = instantiate(cfg.pretext.head, _convert_="all")(encoder)
    assert pretext.num_views == len(sides)


def test_unprotected_views_show_marked_pixels():
    see = instantiate(composed("pretext=moco_v3").pretext.views, _convert_="all")
    y, x = np.mgrid[:96, :96] - 95 / 2
    marked = np.where((np.hypot(x, y) <= 0.6 * 48)[..., None], [0, 90, 0], [255, 0, 255]).astype(np.uint8)
    shown = [
        np.ptp(view.reshape(-1, 3), axis=0).max() for seed in range(10) for view in see(marked, 1.0, seed)
    ]
    assert np.mean(np.array(shown) > 20) > 0.8
