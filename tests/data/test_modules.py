"""Tests of the DataModules and their loaders, in one and in several processes."""

import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from drgrade.data.datamodules import GradingDataModule, PretextDataModule
from drgrade.data.datasets import local_batch_size
from drgrade.data.splits.split import groups_of
from drgrade.data.transforms import (
    FILL,
    MEAN,
    STD,
    FundusAugmentation,
    MaskedView,
    circular_mask,
    normalise,
)
from drgrade.errors import ConfigError, DataError

PUBLISHED = {"zoom": (0.85, 1.15), "horizontal_flip": True, "vertical_flip": True}


def process(rank=0, world=1):
    """Return a stand-in for the trainer of a DataModule."""
    return SimpleNamespace(
        global_rank=rank, world_size=world, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )


def grading(photographs, rank=0, world=1, augment=None, **options):
    settings = {"batch_size": 6, "seed": 0, "num_workers": 0} | options
    data = GradingDataModule(photographs, FundusAugmentation(**(augment or {})), **settings)
    data.trainer = process(rank, world)
    data.prepare_data()
    data.setup()
    return data


def pretext(photographs, rank=0, world=1, **options):
    settings = {"batch_size": 6, "seed": 0, "num_workers": 0} | options
    data = PretextDataModule(photographs, MaskedView(), **settings)
    data.trainer = process(rank, world)
    data.prepare_data()
    data.setup()
    return data


def batches(loader, epoch=0):
    if isinstance(loader, list):
        return []
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return list(loader)


def same(first, second):
    """Compare two lists of batches pixel by pixel."""
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(map(torch.equal, tensors(a), tensors(b)))
        for a, b in zip(first, second, strict=True)
    )


def tensors(batch):
    """Return all tensors of a batch in a fixed order."""
    return [each for value in batch.values() for each in (value if isinstance(value, list) else [value])]


def rows(found, key="index"):
    return [int(value) for batch in found for value in batch[key]]


def subset_rows(photographs, *subsets):
    return np.flatnonzero(photographs.split["subset"].isin(subsets)).tolist()


def some_ungraded(manifest):
    """Remove the grade of each fifth photograph."""
    return manifest.assign(grade=manifest["grade"].mask(np.arange(len(manifest)) % 5 == 0))


def none_graded(manifest):
    return manifest.assign(grade=pd.array([None] * len(manifest), dtype="Int64"))


def with_published_test(manifest):
    return manifest.assign(split=pd.array(["train"] * 40 + ["test"] * 20, dtype="string"))


# Batches


def test_batches_are_uint8_before_the_device_transfer(photographs):
    data = grading(photographs)
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"image", "grade", "index"}
    assert (batch["image"].shape, batch["image"].dtype) == ((6, 3, 32, 32), torch.uint8)
    assert (batch["grade"].shape, batch["grade"].dtype) == ((6,), torch.int64)
    assert (batch["index"].shape, batch["index"].dtype) == ((6,), torch.int64)
    moved = data.on_after_batch_transfer(batch, 0)
    assert (moved["image"].shape, moved["image"].dtype) == ((6, 3, 32, 32), torch.float32)
    assert batch["image"].dtype == torch.uint8
    assert torch.equal(moved["grade"], batch["grade"])
    assert torch.equal(moved["index"], batch["index"])


def test_normalisation_matches_a_naive_loop():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = np.empty((2, 3, 4, 5))
    for place in np.ndindex(expected.shape):
        channel = place[1]
        expected[place] = (int(images[place]) / 255 - MEAN[channel]) / STD[channel]
    np.testing.assert_allclose(normalise(images).numpy(), expected, atol=1e-6)


def test_normalised_fill_colour_is_nearly_zero():
    fill = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1)
    assert normalise(fill).abs().max() < 0.01


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_images_and_grades_match_the_index(photographs, subset):
    data = grading(photographs)
    found = batches(getattr(data, f"{subset}_dataloader")())
    manifest = photographs.manifest
    assert set(rows(found)) == set(subset_rows(photographs, subset))
    assert rows(found, "grade") == manifest["grade"].iloc[rows(found)].tolist()
    for batch in found:
        for image, row in zip(batch["image"], batch["index"], strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), photographs.stores[0].images[row])


def test_only_training_photographs_are_augmented(photographs):
    turned = {"rotate": 90.0}
    plain, augmented = grading(photographs), grading(photographs, augment=turned)
    for loader in ("val_dataloader", "test_dataloader"):
        assert same(batches(getattr(plain, loader)()), batches(getattr(augmented, loader)()))
    one, other = batches(plain.train_dataloader()), batches(augmented.train_dataloader())
    assert rows(one) == rows(other)
    assert not torch.equal(one[0]["image"], other[0]["image"])


def test_ungraded_photographs_have_no_grade_in_the_pretext(make_photographs):
    photographs = make_photographs(some_ungraded, val_fraction=0.15)
    data = pretext(photographs, pretrain_on="all")
    for batch in batches(data.train_dataloader()):
        missing = photographs.manifest["grade"].iloc[batch["index"].tolist()].isna().to_numpy()
        assert ((batch["grade"] == -1).numpy() == missing).all()


# Order and seeds


@pytest.mark.parametrize("make", [grading, pretext])
def test_batches_do_not_depend_on_the_number_of_workers(photographs, make):
    options = {"augment": PUBLISHED} if make is grading else {}
    alone, helped = make(photographs, **options), make(photographs, num_workers=2, **options)
    loader, helped_loader = alone.train_dataloader(), helped.train_dataloader()
    for epoch in range(2):  # the workers persist
        assert same(batches(loader, epoch), batches(helped_loader, epoch))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_does_not_advance_global_generators(photographs, workers):
    """Otherwise dropout would depend on the number of workers and validations."""
    data = grading(photographs, num_workers=workers, augment=PUBLISHED)
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    batches(data.train_dataloader())
    batches(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize("make", [grading, pretext])
def test_stream_is_reproducible_and_epochs_differ(photographs, make):
    options = {"augment": PUBLISHED} if make is grading else {}
    loader = make(photographs, **options).train_dataloader()
    first, second = batches(loader, 0), batches(loader, 1)
    assert same(batches(make(photographs, **options).train_dataloader(), 0), first)
    assert same(batches(loader, 0), first)
    assert rows(first) != rows(second)
    assert not same(batches(make(photographs, seed=1, **options).train_dataloader(), 0), first)


def test_lightning_continues_the_stream_after_a_resume(photographs, tmp_path):
    class Recorder(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(1, 1), []

        def training_step(self, batch, batch_idx):
            self.seen.append(batch["index"].tolist())
            return self.layer(torch.ones(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def fit(epochs, checkpoint=None):
        data, task = grading(photographs, steps_per_epoch=3, augment=PUBLISHED), Recorder()
        data.trainer = None
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return task.seen

    loader = grading(photographs, steps_per_epoch=3).train_dataloader()
    expected = [batch["index"].tolist() for epoch in range(4) for batch in batches(loader, epoch)]
    assert fit(4) == expected
    assert fit(2) == expected[:6]
    assert fit(4, tmp_path / "last.ckpt") == expected[6:]


# Batch size and steps


@pytest.mark.parametrize("batch_size", [6, 500])
def test_epochs_have_the_requested_steps_and_full_batches(make_photographs, batch_size):
    photographs = make_photographs(label_fraction=0.25, val_fraction=0.15)
    count = len(subset_rows(photographs, "train"))
    data = grading(photographs, batch_size=batch_size, steps_per_epoch=7)
    loader = data.train_dataloader()
    for epoch in range(2):
        found = batches(loader, epoch)
        assert [len(batch["index"]) for batch in found] == [min(batch_size, count)] * 7
    assert len(loader) == 7


def test_default_epoch_is_one_pass_of_full_batches(photographs):
    count = len(subset_rows(photographs, "train"))
    found = batches(grading(photographs, batch_size=8).train_dataloader())
    assert [len(batch["index"]) for batch in found] == [8] * -(-count // 8)
    assert set(rows(found)) == set(subset_rows(photographs, "train"))


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_below_one_are_refused(photographs, steps):
    with pytest.raises(ConfigError, match=f"steps_per_epoch={steps}"):
        grading(photographs, steps_per_epoch=steps)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("make", [grading, pretext])
def test_processes_share_each_batch(photographs, make, world):
    """The batch size counts all processes."""
    alone = batches(make(photographs, batch_size=6).train_dataloader(), 1)
    shares = [batches(make(photographs, r, world, batch_size=6).train_dataloader(), 1) for r in range(world)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, whole in enumerate(alone):
        assert [len(share[step]["index"]) for share in shares] == [6 // world] * world
        assert sorted(i for share in shares for i in share[step]["index"].tolist()) == sorted(
            whole["index"].tolist()
        )


@pytest.mark.parametrize("batch_size", [0, -4, 5, 7])
def test_batch_size_must_be_divisible_by_the_processes(photographs, batch_size):
    with pytest.raises(ConfigError, match=f"data.batch_size={batch_size} .*shared evenly by 2 processes"):
        grading(photographs, world=2, batch_size=batch_size).train_dataloader()


@pytest.mark.parametrize(
    ("batch_size", "count", "world", "expected"),
    [(32, 100, 1, 32), (32, 100, 4, 8), (32, 10, 1, 10), (32, 10, 4, 2), (32, 3, 4, 1), (4, 100, 4, 1)],
)
def test_local_batch_size(batch_size, count, world, expected):
    assert local_batch_size(batch_size, count, world) == expected


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader"])
def test_every_photograph_is_evaluated_exactly_once(photographs, loader, world):
    found = []
    for rank in range(world):
        share = batches(getattr(grading(photographs, rank, world), loader)())
        assert all(len(batch["index"]) <= 6 // world for batch in share)
        found += rows(share)
    assert sorted(found) == subset_rows(photographs, loader.removesuffix("_dataloader"))


def test_more_processes_than_evaluated_photographs_are_refused(photographs):
    """Lightning skips a process without a batch, and the others would wait indefinitely."""
    count = len(subset_rows(photographs, "test"))
    for rank in (0, count):
        data = grading(photographs, rank, count + 1, batch_size=count + 1)
        with pytest.raises(ConfigError, match=f"{count} photographs .*{count + 1} processes"):
            data.test_dataloader()


def test_val_dataloader_is_empty_without_validation_photographs(make_photographs):
    assert grading(make_photographs(val_fraction=0.0)).val_dataloader() == []


@pytest.mark.parametrize("world", [1, 2])
def test_balanced_sampling_draws_grades_equally_often(photographs, world):
    found: Counter[int] = Counter()
    for rank in range(world):
        data = grading(photographs, rank, world, balanced=True, steps_per_epoch=250, batch_size=8)
        dataset = data.train_dataloader().dataset
        found.update(int(dataset.grades[draw.photograph]) for draw in data.train_dataloader().sampler)
    assert sum(found.values()) == 2000
    share = 2000 / len(found)
    assert len(found) >= 4
    assert all(abs(count - share) < 4 * np.sqrt(share) for count in found.values())


def test_unbalanced_sampling_draws_photographs_equally_often(photographs):
    found = batches(grading(photographs, steps_per_epoch=40, batch_size=6).train_dataloader())
    seen = Counter(rows(found))
    assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("make", [grading, pretext])
def test_pickled_dataset_contains_no_pixels(photographs, make):
    dataset = make(photographs).train_dataloader().dataset
    loader = make(photographs).train_dataloader()
    first = dataset[next(iter(loader.sampler))]  # the store is open now
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 20_000 < photographs.stores[0].images.nbytes
    again = pickle.loads(pickled)[next(iter(loader.sampler))]
    (mine,), (its,) = (each["views"] if "views" in each else [each["image"]] for each in (again, first))
    assert torch.equal(mine, its)


# Photographs of a pretext


@pytest.mark.parametrize("fold", [0, 3, "published"])
def test_pretraining_on_train_excludes_test_groups(make_photographs, fold):
    def change(manifest):
        return with_published_test(some_ungraded(manifest))

    photographs = make_photographs(change, fold=fold, val_fraction=0.15, label_fraction=0.25)
    data = pretext(photographs, pretrain_on="train")
    seen = rows(batches(data.train_dataloader())) + rows(batches(data.val_dataloader()))
    groups = photographs.split["group"]
    tested = set(groups.iloc[subset_rows(photographs, "test")])
    if fold == "published":
        tested |= set(groups.iloc[40:])
    assert tested
    # Exactly the photographs outside the tested groups.
    assert set(seen) == set(np.flatnonzero(~groups.isin(tested)).tolist())


@pytest.mark.parametrize("fold", [0, 3])
def test_pretraining_on_all_uses_every_photograph(make_photographs, fold):
    photographs = make_photographs(some_ungraded, fold=fold, val_fraction=0.15)
    data = pretext(photographs, pretrain_on="all")
    seen = set(rows(batches(data.train_dataloader()))), set(rows(batches(data.val_dataloader())))
    assert seen[0] | seen[1] == set(range(60))
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("pretrain_on", ["train", "all"])
@pytest.mark.parametrize("val_fraction", [0.05, 0.3])
def test_pretext_validation_does_not_split_groups(photographs, pretrain_on, val_fraction):
    data = pretext(photographs, pretrain_on=pretrain_on, val_fraction=val_fraction)
    table = data.subsets()
    seen = table[table["subset"] != "test"]
    assert seen.groupby("group")["subset"].nunique().max() == 1
    assert (seen["subset"] == "val").sum() == pytest.approx(val_fraction * len(seen), abs=2)
    assert table["image_id"].tolist() == photographs.split["image_id"].tolist()


def test_pretext_views_are_masked_and_validation_is_the_widest_view(photographs):
    data = pretext(photographs, val_fraction=0.3)
    outside = ~circular_mask(32)
    for batch in batches(data.train_dataloader()) + batches(data.val_dataloader()):
        (views,) = batch["views"]
        assert views.permute(0, 2, 3, 1).numpy()[:, outside].reshape(-1, 3).tolist() == [list(FILL)] * (
            len(views) * outside.sum()
        )
    view = MaskedView()
    for batch in batches(data.val_dataloader()):
        for image, row in zip(batch["views"][0], batch["index"].tolist(), strict=True):
            clear = photographs.manifest["clear"].iloc[row]
            expected = view(np.array(photographs.stores[0].images[row]), clear, None)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("pretrain_on", ["train", "all"])
def test_photographs_hash_is_equal_for_all_fractions(make_photographs, pretrain_on, within):
    hashes = set()
    for fraction in (0.25, 0.5, 1.0):
        photographs = make_photographs(
            some_ungraded, label_fraction=fraction, val_fraction=0.3, val_within_fraction=within
        )
        hashes.add(pretext(photographs, pretrain_on=pretrain_on).photographs_hash())
    assert len(hashes) == 1


@pytest.mark.parametrize(("pretrain_on", "encoders"), [("train", 5), ("all", 1)])
def test_photographs_hash_differs_between_folds_only_for_train(make_photographs, pretrain_on, encoders):
    hashes = {
        pretext(make_photographs(fold=fold, val_fraction=0.15), pretrain_on=pretrain_on).photographs_hash()
        for fold in range(5)
    }
    assert len(hashes) == encoders


def test_photographs_hash_depends_on_photographs_and_subsets_only(make_photographs, photographs):
    hashes = [
        pretext(photographs).photographs_hash(),
        pretext(photographs, val_fraction=0.3).photographs_hash(),
        pretext(photographs, pretrain_on="all").photographs_hash(),
        pretext(make_photographs(none_graded), pretrain_on="all").photographs_hash(),
    ]
    assert len(set(hashes[:3])) == 3
    assert hashes[3] == hashes[2], "grades that are not used change nothing"
    assert pretext(photographs, seed=5, batch_size=4).photographs_hash() == hashes[0]


@pytest.mark.parametrize("pretrain_on", ["train", "all"])
def test_pretraining_needs_no_grades(make_photographs, pretrain_on):
    photographs = make_photographs(none_graded)
    data = pretext(photographs, pretrain_on=pretrain_on, val_fraction=0.2)
    table = data.subsets()
    assert set(table["subset"]) == {"train", "val"}
    assert table["group"].tolist() == groups_of(photographs.manifest).tolist()
    found = batches(data.train_dataloader())
    assert set(rows(found, "grade")) == {-1}
    assert len(data.photographs_hash()) == 64
    with pytest.raises(DataError, match="no photograph has a grade"):
        grading(photographs)


def test_pretraining_without_validation(photographs):
    data = pretext(photographs, val_fraction=0.0)
    assert data.val_dataloader() == []
    assert set(data.subsets()["subset"]) == {"train", "test"}


def test_unknown_pretrain_on_is_refused(photographs):
    with pytest.raises(ConfigError, match="pretrain_on='everything' is neither 'train' nor 'all'"):
        pretext(photographs, pretrain_on="everything")


@pytest.mark.parametrize("val_fraction", [1.0, 1.5, -0.1])
def test_invalid_pretext_val_fraction_is_refused(photographs, val_fraction):
    with pytest.raises((ConfigError, DataError), match="val_fraction"):
        pretext(photographs, val_fraction=val_fraction)
