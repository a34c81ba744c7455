import numpy as np
import pytest
import torch
from torch import nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.rotation import Rotation, four_turns, rotation_scores


class Pixels(Encoder):
    """Encoder with a linear layer on the pixels of an image."""

    def __init__(self, size=8, features=16):
        super().__init__()
        self.num_features = features
        self.layer = nn.Linear(3 * size * size, features)

    def forward(self, images):
        return torch.relu(self.layer(images.flatten(1)))


def images(count=5, size=8, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 7, 8])
def test_target_k_is_k_quarter_turns_counter_clockwise(size):
    batch = images(size=size)
    views, targets = four_turns(batch)
    assert views.shape == (20, 3, size, size)
    assert targets.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    for view, image, k in zip(views, batch.repeat(4, 1, 1, 1), targets, strict=True):
        np.testing.assert_array_equal(view.numpy(), np.rot90(image.numpy(), int(k), axes=(1, 2)))


def test_a_quarter_turn_moves_the_upper_right_corner_to_the_upper_left():
    batch = torch.zeros(1, 3, 4, 4)
    batch[0, :, 0, 3] = 1  # upper right
    views, _ = four_turns(batch)
    corners = [tuple(np.argwhere(view[0].numpy())[0]) for view in views]
    assert corners == [(0, 3), (0, 0), (3, 0), (3, 3)]  # counter-clockwise


def test_turns_preserve_pixels_and_dtype():
    batch = images().to(torch.float16)
    views, targets = four_turns(batch)
    assert views.dtype == torch.float16
    assert targets.dtype == torch.int64
    for i in range(5):
        for k in range(1, 4):
            assert torch.equal(views[k * 5 + i].flatten().sort().values, batch[i].flatten().sort().values)


def test_the_encoder_receives_all_four_turns_of_each_image():
    class Recorder(Pixels):
        def forward(self, images):
            self.seen = images
            return super().forward(images)

    encoder, batch = Recorder(), images()
    Rotation(encoder, (8,))(encoder, [batch])
    assert torch.equal(encoder.seen, four_turns(batch)[0])


@pytest.mark.parametrize("hidden", [(), (7,), (2048, 1024)])
def test_the_head_has_the_configured_widths(hidden):
    head = Rotation(Pixels(), hidden).head
    layers = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(
        zip((16, *hidden), (*hidden, 4), strict=True)
    )


def test_dropout_applies_in_training_only():
    torch.manual_seed(0)
    pretext, encoder, batch = Rotation(Pixels(), (32,), dropout=0.5), Pixels(), images()
    assert pretext(encoder, [batch])[0] != pretext(encoder, [batch])[0]
    pretext.eval()
    assert pretext(encoder, [batch])[0] == pretext(encoder, [batch])[0]


def test_the_loss_is_the_cross_entropy_of_every_view():
    torch.manual_seed(0)
    pretext, encoder, batch = Rotation(Pixels(), (8,)), Pixels(), images()
    loss, _ = pretext(encoder, [batch])
    total = 0.0
    for k in range(4):
        for image in batch:
            logits = pretext.head(encoder(torch.rot90(image, k, (1, 2))[None]))[0]
            total -= logits.log_softmax(0)[k].item()
    assert loss.item() == pytest.approx(total / 20, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_a_naive_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 4, generator=generator)
    targets = torch.arange(4).repeat_interleave(10)
    right = upside_down = sideways_down = quarter = 0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        guess = max(range(4), key=lambda k: row[k])
        right += guess == target
        upside_down += (guess, target) in {(0, 2), (2, 0)}
        sideways_down += (guess, target) in {(1, 3), (3, 1)}
        quarter += abs(guess - target) in {1, 3}
    scores = {name: float(value) for name, value in rotation_scores(logits, targets).items()}
    expected = {"accuracy": right / 40, "confusion_0_180": upside_down / 20}
    expected |= {"confusion_90_270": sideways_down / 20, "quarter_error": quarter / 40}
    assert scores == pytest.approx(expected)


def test_a_hidden_width_of_0_is_refused():
    with pytest.raises(ConfigError, match=r"pretext\.head\.hidden=0"):
        Rotation(Pixels(), hidden=(0,))
