"""Settings of a run small enough to be tested: 60 drawn photographs at 32 px, tiny backbones, two epochs."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

TINY = (
    "data.count=60",
    "data.size=64",
    "data.image_size=32",
    "data.workers=1",
    "scale.batch_size=8",
    "scale.cnn.name=test_resnet",
    "scale.densenet.growth_rate=4",
    "scale.densenet.block_config=[1,1,1,1]",
    "scale.channels=8",
    "scale.refined_channels=8",
    "scale.head_width=16",
    "scale.pretext_head=[16]",
    "scale.pretext_epochs=1",
    "scale.pretext_steps=2",
    "scale.published_epochs=2",
    "scale.matched_epochs=2",
    "scale.matched_steps_per_epoch=2",
    "protocol.val_fraction=0.15",
    "logger=none",
    "trainer=cpu",
)
