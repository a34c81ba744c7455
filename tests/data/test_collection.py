"""One data set and others beside it."""

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
    """Photographs that no two data sets share unless ``first`` says so; patients p0, p1, ... of two each."""
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


def test_a_single_data_set_is_its_store(main, tmp_path):
    photographs = Collection(main, tmp_path / "stores", SIZE)
    (store,) = photographs.stores
    assert len(photographs) == len(store) == 20
    assert photographs.sha256 == store.sha256
    assert photographs.manifest[store.manifest.columns].equals(store.manifest)
    assert set(photographs.manifest["role"]) == {"labelled"}
    assert photographs.manifest["duplicate"].isna().all()


def test_ids_and_patients_of_further_data_sets_carry_their_name(main, other, tmp_path):
    manifest = Collection(main, tmp_path / "stores", SIZE, unlabelled=[other]).manifest
    assert manifest["image_id"].tolist()[18:22] == ["8", "9", "other/0", "other/1"]
    assert manifest["patient_id"].tolist()[19:21] == ["p4", "other/p0"]
    assert manifest["role"].tolist() == ["labelled"] * 20 + ["unlabelled"] * 10
    assert manifest["image_id"].is_unique


def test_rows_count_through_all_stores(main, other, tmp_path):
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


def test_copies_are_found_across_data_sets_and_searched_for_once(main, other, tmp_path, monkeypatch):
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


def test_the_search_for_copies_can_be_left_out(main, other, tmp_path):
    shutil.copyfile(main.root / "3.png", other.root / "7.png")
    photographs = Collection(main, tmp_path / "stores", SIZE, external=[other], find_duplicates=False)
    assert photographs.manifest["duplicate"].isna().all()


def test_one_name_for_two_data_sets_is_refused(main, tmp_path):
    with pytest.raises(ConfigError, match=r"main occurs twice.*name: more"):
        Collection(main, tmp_path, SIZE, external=[main])


def test_the_hash_tells_data_sets_and_roles_apart(main, other, tmp_path):
    def collected(**roles):
        return Collection(main, tmp_path / "stores", SIZE, **roles).sha256

    hashes = {collected(), *(collected(**{role: [other]}) for role in ("labelled", "unlabelled", "external"))}
    assert len(hashes) == 4


def pretext(photographs, pretrain_on) -> PretextDataModule:
    views = MaskedView()
    return PretextDataModule(photographs, views, 8, 0, pretrain_on=pretrain_on, val_fraction=0.0)


@pytest.mark.parametrize("pretrain_on", ["train", "all"])
def test_pools_are_pretrained_on_and_external_data_sets_never(main, other, tmp_path, pretrain_on):
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


def test_external_data_sets_do_not_change_the_key_of_a_pretraining(main, other, tmp_path):
    def key(**roles):
        photographs = Photographs(main, SplitSpec(val_fraction=0.3), tmp_path / "stores", SIZE, **roles)
        return pretext(photographs, "train").photographs_hash()

    assert key() == key(external=[other])
    assert key() != key(unlabelled=[other])


def test_grades_of_copies_that_disagree_are_those_of_the_split(main, tmp_path):
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


def test_a_damaged_list_of_copies_is_searched_for_again(main, other, tmp_path):
    shutil.copyfile(main.root / "3.png", other.root / "7.png")
    photographs = Collection(main, tmp_path / "stores", SIZE, external=[other])
    assert len(photographs.duplicates) == 1
    (path,) = (tmp_path / "stores" / "duplicates").glob("*.csv")
    path.write_text("")
    assert len(Collection(main, tmp_path / "stores", SIZE, external=[other]).duplicates) == 1


def test_copies_that_were_found_can_be_read_where_nothing_can_be_written(main, tmp_path, monkeypatch):
    assert len(Collection(main, tmp_path / "stores", SIZE).duplicates) == 0
    monkeypatch.setattr(collection, "FileLock", None)
    assert len(Collection(main, tmp_path / "stores", SIZE).duplicates) == 0


@pytest.mark.parametrize("name", ["a/b", "", "a b", "..", ".a", "ä\n"])
def test_a_name_that_cannot_be_part_of_a_files_is_refused(main, tmp_path, name):
    main.name = name
    with pytest.raises(ConfigError, match=r"data\.name="):
        Collection(main, tmp_path, SIZE)


def test_grades_of_a_pool_do_not_change_the_key_of_a_pretraining(main, other, tmp_path):
    def key():
        photographs = Photographs(
            main, SplitSpec(val_fraction=0.3), tmp_path / "stores", SIZE, unlabelled=[other]
        )
        return pretext(photographs, "train").photographs_hash()

    before = key()
    labels = (other.root / "labels.csv").read_text().replace("0.png,0,", "0.png,4,")
    (other.root / "labels.csv").write_text(labels)
    assert key() == before


def test_what_pretraining_sees_of_a_pool_does_not_depend_on_who_validates(main, other, tmp_path):
    """A photograph of the pool's own published test set is not seen, whatever it is a copy of."""
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
