"""Tests of collections of several data sets."""

import shutil

import numpy as np
import pytest
from synthetic_photographs import disc_photograph, save, write_labels

from drgrade.data import photographs as collection
from drgrade.data.datamodules import GradingDataModule, PretextDataModule
from drgrade.data.datasets import AugmentedView, SampleIndex, StoreDataset
from drgrade.data.photographs import Collection, Photographs
from drgrade.data.sources.folder import Folder
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.transforms import MaskedView
from drgrade.errors import ConfigError

SIZE = 32


def data_set(root, name, number, first=0) -> Folder:
    """Write photographs that differ between data sets unless ``first`` is equal; two for each patient."""
    for i in range(number):
        save(root / f"{i}.png", disc_photograph(brightness=90 + 2 * (first + i)))
    rows = (f"{i}.png,{i % 5},p{i // 2}" for i in range(number))
    write_labels(root / "labels.csv", *rows, header="image,grade,patient")
    return Folder(root, patient_column="patient", name=name)


@pytest.fixture
def main(tmp_path):
    return data_set(tmp_path / "main", "main", 20)


@pytest.fixture
def other(tmp_path):
    return data_set(tmp_path / "other", "other", 10, first=30)


def test_collection_of_one_data_set_equals_its_store(main, tmp_path):
    photographs = Collection(main, tmp_path / "stores", SIZE)
    (store,) = photographs.stores
    assert len(photographs) == len(store) == 20
    assert photographs.sha256 == store.sha256
    assert photographs.manifest[store.manifest.columns].equals(store.manifest)
    assert set(photographs.manifest["role"]) == {"labelled"}
    assert photographs.manifest["duplicate"].isna().all()


def test_ids_of_further_data_sets_have_a_prefix(main, other, tmp_path):
    manifest = Collection(main, tmp_path / "stores", SIZE, unlabelled=[other]).manifest
    assert manifest["image_id"].tolist()[18:22] == ["8", "9", "other/0", "other/1"]
    assert manifest["patient_id"].tolist()[19:21] == ["p4", "other/p0"]
    assert manifest["role"].tolist() == ["labelled"] * 20 + ["unlabelled"] * 10
    assert manifest["image_id"].is_unique


def test_rows_are_numbered_through_all_stores(main, other, tmp_path):
    photographs = Collection(main, tmp_path / "stores", SIZE, labelled=[other])
    rows = range(len(photographs))
    view = AugmentedView(lambda image, seed: image)
    dataset = StoreDataset(photographs.image_files, rows, [0] * len(rows), view)
    expected = np.concatenate([store.images for store in photographs.stores])
    for row in (0, 19, 20, 29):
        image = dataset[SampleIndex(row, None)]["image"].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image, expected[row])
    assert photographs.store_numbers(np.array([0, 19])) == [0]
    assert photographs.store_numbers(np.array([20])) == [1]
    assert photographs.store_numbers(np.array([19, 20])) == [0, 1]


def test_duplicates_across_data_sets_are_searched_for_once(main, other, tmp_path, monkeypatch):
    shutil.copyfile(main.root / "3.png", other.root / "7.png")
    photographs = Collection(main, tmp_path / "stores", SIZE, external=[other])
    (pair,) = photographs.duplicates.itertuples()
    ids = photographs.manifest["image_id"]
    assert ([ids[pair.first], ids[pair.second]], pair.kind) == (["3", "other/7"], "identical")
    named = photographs.manifest["duplicate"].dropna()
    assert (named.index.tolist(), set(named)) == ([pair.first, pair.second], {"3"})
    monkeypatch.setattr(collection, "find_duplicates", None)
    again = Collection(main, tmp_path / "stores", SIZE, external=[other])
    assert again.duplicates.equals(photographs.duplicates)


def test_search_for_duplicates_can_be_disabled(main, other, tmp_path):
    shutil.copyfile(main.root / "3.png", other.root / "7.png")
    photographs = Collection(main, tmp_path / "stores", SIZE, external=[other], find_duplicates=False)
    assert photographs.manifest["duplicate"].isna().all()


def test_repeated_name_of_a_data_set_is_refused(main, tmp_path):
    with pytest.raises(ConfigError, match=r"main occurs twice.*name: more"):
        Collection(main, tmp_path, SIZE, external=[main])


def test_hash_depends_on_data_sets_and_roles(main, other, tmp_path):
    def collected(**roles):
        return Collection(main, tmp_path / "stores", SIZE, **roles).sha256

    hashes = {collected(), *(collected(**{role: [other]}) for role in ("labelled", "unlabelled", "external"))}
    assert len(hashes) == 4


def pretext(photographs, pretrain_on) -> PretextDataModule:
    views = MaskedView()
    return PretextDataModule(photographs, views, 8, 0, pretrain_on=pretrain_on, val_fraction=0.0)


@pytest.mark.parametrize("pretrain_on", ["train", "all"])
def test_pretraining_uses_unlabelled_but_not_external_data_sets(main, other, tmp_path, pretrain_on):
    third = data_set(tmp_path / "third", "third", 10, first=50)
    shutil.copyfile(third.root / "4.png", main.root / "6.png")
    photographs = Photographs(
        main, SplitSpec(val_fraction=0.3), tmp_path / "stores", SIZE, unlabelled=[other], external=[third]
    )
    table = pretext(photographs, pretrain_on).subsets()
    seen = set(table["image_id"][table["subset"] != "test"])
    assert {f"other/{i}" for i in range(10)} <= seen
    assert not seen & {f"third/{i}" for i in range(10)}
    assert not seen & {"6", "7"}, "a copy of an external photograph, and its patient's other one"
    subsets = photographs.split.set_index("image_id")["subset"]
    assert set(subsets[[f"third/{i}" for i in range(10)]]) == {"external"}
    assert subsets["6"] in ("excluded", "test")


def test_external_data_sets_do_not_change_the_photographs_hash(main, other, tmp_path):
    def key(**roles):
        photographs = Photographs(main, SplitSpec(val_fraction=0.3), tmp_path / "stores", SIZE, **roles)
        return pretext(photographs, "train").photographs_hash()

    assert key() == key(external=[other])
    assert key() != key(unlabelled=[other])


def test_conflicting_grades_of_duplicates_follow_the_split(main, tmp_path):
    shutil.copyfile(main.root / "0.png", main.root / "1.png")  # grades 0 and 1
    photographs = Photographs(
        main, SplitSpec(disagreeing="keep_one", val_fraction=0.3), tmp_path / "stores", SIZE
    )
    data = GradingDataModule(photographs, lambda image, seed: image, 8, 0)
    data.setup()
    served = {
        int(row): int(grade)
        for name in ("train", "val", "test")
        for row, grade in zip(data._datasets[name].rows, data._datasets[name].grades, strict=True)
    }
    index = photographs.manifest["image_id"].tolist().index
    assert served[index("0")] == 0
    assert index("1") not in served


def test_damaged_list_of_duplicates_is_replaced(main, other, tmp_path):
    shutil.copyfile(main.root / "3.png", other.root / "7.png")
    photographs = Collection(main, tmp_path / "stores", SIZE, external=[other])
    assert len(photographs.duplicates) == 1
    (path,) = (tmp_path / "stores" / "duplicates").glob("*.csv")
    path.write_text("")
    assert len(Collection(main, tmp_path / "stores", SIZE, external=[other]).duplicates) == 1


def test_stored_duplicates_are_read_from_a_read_only_folder(main, tmp_path, monkeypatch):
    assert len(Collection(main, tmp_path / "stores", SIZE).duplicates) == 0
    monkeypatch.setattr(collection, "FileLock", None)
    assert len(Collection(main, tmp_path / "stores", SIZE).duplicates) == 0


@pytest.mark.parametrize("name", ["a/b", "", "a b", "..", ".a", "ä\n"])
def test_name_that_cannot_be_part_of_a_file_name_is_refused(main, tmp_path, name):
    main.name = name
    with pytest.raises(ConfigError, match=r"data\.name="):
        Collection(main, tmp_path, SIZE)


def test_grades_of_unlabelled_data_do_not_change_the_photographs_hash(main, other, tmp_path):
    def key():
        photographs = Photographs(
            main, SplitSpec(val_fraction=0.3), tmp_path / "stores", SIZE, unlabelled=[other]
        )
        return pretext(photographs, "train").photographs_hash()

    before = key()
    labels = (other.root / "labels.csv").read_text().replace("0.png,0,", "0.png,4,")
    (other.root / "labels.csv").write_text(labels)
    assert key() == before


def test_pretraining_photographs_do_not_depend_on_the_validation_set(main, other, tmp_path):
    """Photographs of the published test set of unlabelled data are excluded, even as copies."""
    rows = (f"{i}.png,1,{'test' if i == 4 else 'train'}" for i in range(10))
    write_labels(other.root / "labels.csv", *rows, header="image,grade,split")
    pool = Folder(other.root, name="other", split_column="split")
    for copied in range(20):
        shutil.copyfile(main.root / f"{copied}.png", other.root / "4.png")
        photographs = Photographs(
            main, SplitSpec(val_fraction=0.3), tmp_path / "stores", SIZE, unlabelled=[pool]
        )
        table = pretext(photographs, "train").subsets().set_index("image_id")["subset"]
        assert table["other/4"] == "test"
