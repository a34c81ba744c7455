import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import cnn, msssl, one_size, views, vit, without_gradient

from drgrade.data.transforms import SquareView, normalise
from drgrade.errors import ConfigError, EncoderError
from drgrade.models.encoder import TimmEncoder
from drgrade.pretext.mae import MAE, visible_tokens, with_prefix

TRANSFORMERS = {
    "class token": vit,
    "one size only": one_size,
    "pooled tokens": lambda side: TimmEncoder("test_vit2", side),
    "registers, no class token": lambda side: TimmEncoder(
        "vit_little_patch16_reg4_gap_256", side, depth=2, embed_dim=32, num_heads=2
    ),
    "class token and registers": lambda side: TimmEncoder("test_vit", side, reg_tokens=2),
}


def all_patches(encoder, batch=4):
    return torch.arange(encoder.model.patch_embed.num_patches).expand(batch, -1)


def draw(pretext, batch=4):
    return pretext.draw_mask(batch, torch.device("cpu"))


@pytest.mark.parametrize("side", [32, 64, 96])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_tokens_of_all_patches_equal_those_of_the_encoder(kind, side):
    torch.manual_seed(0)
    encoder = TRANSFORMERS[kind](side)
    (images,) = views(side=side)
    tokens = visible_tokens(encoder, images, all_patches(encoder))
    expected = encoder.model.fc_norm(encoder.model.forward_features(images))
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_tokens_are_in_the_order_of_the_given_patches():
    torch.manual_seed(0)
    encoder = vit()
    (images,) = views()
    keep = torch.tensor([[3, 9, 12]]).expand(4, -1)
    tokens = visible_tokens(encoder, images, keep)
    turned = visible_tokens(encoder, images, keep.flip(1))
    torch.testing.assert_close(turned, tokens[:, [0, 3, 2, 1]], rtol=0, atol=1e-5)


def test_masked_patches_have_no_influence_on_the_tokens():
    torch.manual_seed(0)
    encoder = vit()
    pretext = MAE(encoder).eval()
    (images,) = views()
    keep, left_out = draw(pretext)
    predicted = pretext.reconstruct(encoder, images, keep, left_out)
    for patches, unchanged in ((left_out, True), (keep, False)):
        changed = images.clone()
        for image, chosen in zip(changed, patches.tolist(), strict=True):
            for patch in chosen:
                row, column = divmod(patch, 4)
                image[:, 16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)] += 5
        assert torch.equal(pretext.reconstruct(encoder, changed, keep, left_out), predicted) == unchanged


@pytest.mark.parametrize("normalise", ["colours", "patch", "nothing"])
def test_the_loss_equals_a_naive_loop(normalise):
    torch.manual_seed(0)
    encoder = vit()
    pretext = MAE(encoder, normalise=normalise).eval()  # the same mask in every call
    images = views()[0] + torch.tensor([2.0, 0.0, -2.0]).view(3, 1, 1)
    keep, left_out = draw(pretext)
    predicted = pretext.reconstruct(encoder, images, keep, left_out)
    errors, variances = [], []
    for image, chosen, rows in zip(images, left_out.tolist(), predicted, strict=True):
        for patch, guess in zip(chosen, rows, strict=True):
            row, column = divmod(patch, 4)
            cut = image[:, 16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)]
            pixels = cut.permute(1, 2, 0).double().numpy()  # rows, columns, colours
            if normalise != "nothing":
                axes = (0, 1) if normalise == "colours" else None
                pixels = (pixels - pixels.mean(axis=axes)) / pixels.std(axis=axes, ddof=1)
            errors.append(((guess.detach().double().numpy() - pixels.flatten()) ** 2).mean())
            variances.append(np.mean([pixels[..., colour].var() for colour in range(3)]))
    loss, scores = pretext(encoder, [images])
    assert len(errors) == 4 * 12
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(scores["explained"]) == pytest.approx(1 - np.mean(errors) / np.mean(variances), abs=1e-4)


def test_visible_patches_have_no_loss():
    class OffByOne(MAE):
        """Pretext whose predictions have an error of one."""

        def reconstruct(self, encoder, images, keep, left_out):
            self.masked_patches = left_out
            return super().targets(images).gather(1, left_out[..., None].expand(-1, -1, 768)) + 1

    pretext = OffByOne(vit())
    loss, _ = pretext(vit(), views())
    assert pretext.masked_patches.shape == (4, 12)
    assert loss.item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("answer", "explained"), [("means", 0.0), ("truth", 1.0)])
@pytest.mark.parametrize("normalise", ["colours", "patch", "nothing"])
def test_explained_is_0_for_means_and_1_for_a_perfect_prediction(answer, explained, normalise):
    class OffByOne(MAE):
        def reconstruct(self, encoder, images, keep, left_out):
            truth = self.targets(images).gather(1, left_out[..., None].expand(-1, -1, 768))
            means = truth.unflatten(-1, (256, 3)).mean(dim=2, keepdim=True)
            return truth if answer == "truth" else means.expand(-1, -1, 256, 3).flatten(2)

    _, scores = OffByOne(vit(), normalise=normalise)(vit(), views())
    assert float(scores["explained"]) == pytest.approx(explained, abs=1e-5)


@given(ratio=st.floats(0.2, 0.8), side=st.sampled_from([32, 64, 96]), batch=st.integers(1, 5))
def test_each_patch_is_either_visible_or_masked(ratio, side, batch):
    pretext = MAE(TRANSFORMER[side], ratio)
    patches = (side // 16) ** 2
    keep, left_out = draw(pretext, batch)
    assert abs(left_out.shape[1] - ratio * patches) <= 0.5
    assert pretext.encoder_inputs == pytest.approx(keep.shape[1] / patches)
    for kept, out in zip(keep.tolist(), left_out.tolist(), strict=True):
        assert sorted([*kept, *out]) == list(range(patches))


TRANSFORMER = {side: TimmEncoder("test_vit", side, depth=1) for side in (32, 64, 96)}


def test_masks_differ_between_photographs_and_steps():
    torch.manual_seed(0)
    pretext = MAE(vit(96))
    first, second = draw(pretext, 8)[1], draw(pretext, 8)[1]
    assert len({tuple(sorted(row)) for row in (*first.tolist(), *second.tolist())}) == 16


def test_all_patches_are_masked_equally_often():
    torch.manual_seed(0)
    pretext = MAE(vit())
    counts = torch.bincount(draw(pretext, 4000)[1].flatten(), minlength=16) / 4000
    assert (counts - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5  # standard errors


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_every_parameter_gets_a_gradient(kind):
    torch.manual_seed(0)
    encoder = TRANSFORMERS[kind](64)
    assert without_gradient(MAE(encoder), encoder, views()) == []


def test_the_default_decoder_has_the_published_proportions():
    with torch.device("meta"):
        decoder = MAE(TimmEncoder("vit_large_patch16_224", 224)).decoder
    assert (decoder.pos_embed.shape[-1], len(decoder.blocks)) == (512, 8)
    assert decoder.blocks[0].attn.num_heads == 16


def test_the_decoder_can_be_configured():
    pretext = MAE(vit(), decoder_width=48, decoder_depth=3, decoder_heads=6)
    assert (pretext.embed.out_features, len(pretext.decoder.blocks)) == (48, 3)
    assert pretext.decoder.blocks[0].attn.num_heads == 6


@pytest.mark.parametrize(
    "setting",
    [
        {"decoder_width": 42},
        {"decoder_width": 0},
        {"decoder_width": 64, "decoder_heads": 3},
        {"decoder_depth": 0},
        {"decoder_heads": 0},
        {"normalise": "rows"},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.0},
        {"mask_ratio": 0.99},  # no visible patch left out of 16
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        MAE(vit(), **setting)


@pytest.mark.parametrize(
    ("encoder", "why"),
    [
        (cnn, "not a plain"),
        (msssl, "not a plain"),
        (lambda: TimmEncoder("test_vit3", 64), "attention pooling"),
        (lambda: TimmEncoder("swin_tiny_patch4_window7_224", 64, depths=(1, 1, 1, 1)), "not a plain"),
        (lambda: TimmEncoder("test_vit", 64, pos_embed="none"), "position"),
        (lambda: TimmEncoder("deit_tiny_distilled_patch16_224", 64, depth=1), "not a plain"),
    ],
)
def test_an_encoder_that_cannot_omit_patches_is_refused(encoder, why):
    with pytest.raises(EncoderError, match=rf"pretext=mae .*({why}).*encoder=vit"):
        MAE(encoder())


def test_views_of_another_size_are_refused():
    encoder = vit(40)
    pretext = MAE(encoder)
    with pytest.raises(ConfigError, match=r"pretext\.views\.size=48"):
        pretext(encoder, views(side=40))
    pretext(encoder, views(side=48))


def test_positions_follow_the_prefix_tokens():
    assert with_prefix(torch.tensor([[4, 0], [2, 1]]), 2).tolist() == [[0, 1, 6, 2], [0, 1, 4, 3]]
    assert with_prefix(torch.tensor([[4, 0]]), 0).tolist() == [[4, 0]]


@pytest.mark.parametrize("name", ["demo", "idrid"])
def test_views_show_no_black_patches_unlike_whole_photographs(stores, name):
    store, view = stores(name), SquareView(area=(0.2, 1.0))
    clear = store.manifest["clear"].to_numpy()
    square = [view(np.array(image), clear[i], i) for i, image in enumerate(store.images[:80])]
    assert not black_patches(np.stack(square)).any()
    assert black_patches(np.array(store.images[:80])).mean() > 0.05


@pytest.mark.parametrize("name", ["demo", "idrid"])
def test_a_constant_patch_explains_nothing_unlike_with_the_published_normalisation(stores, name):
    store, view = stores(name), SquareView(area=(0.2, 1.0))
    clear = store.manifest["clear"].to_numpy()
    square = [view(np.array(image), clear[i], i) for i, image in enumerate(store.images[:100])]
    images = normalise(torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2))

    def explained(what):
        targets = MAE(vit(), normalise=what).targets(images)  # (photographs, patches, pixels)
        constant = targets[:50].mean(dim=(0, 1))
        return float(1 - (targets[50:] - constant).square().mean() / targets[50:].square().mean())

    assert explained("colours") < 0.05
    assert explained("patch") > 0.9


def black_patches(images):
    """Return for each patch of 8 pixels whether all of it is black."""
    count, side = len(images), images.shape[1] // 8
    return images.reshape(count, side, 8, side, 8 * 3).max(axis=(2, 4)) < 24
