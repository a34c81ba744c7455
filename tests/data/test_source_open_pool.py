import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from source_layouts import files, reasons, rows, text

from drgrade.config import CONF
from drgrade.data.photographs import Collection
from drgrade.data.sources.open_pool import OpenPool
from drgrade.data.splits.split import groups_of, has_grades
from drgrade.errors import DataError

REAL = Path(os.environ.get("DRGRADE_TEST_DATA", CONF.parent / "../shared/data")) / "open_pool"


@pytest.fixture
def pool(tmp_path):
    files(tmp_path / "images", "hrf/01_dr.jpg", "grape/1_OD_1.jpg", "hygd/7_0.jpg", "mfiddr/e1.jpg")
    text(
        tmp_path / "pool.csv",
        "image,dataset,patient,eye,finding,grade",
        "hrf/01_dr.jpg,hrf,,,DR,",
        "grape/1_OD_1.jpg,grape,grape-1,right,glaucoma,",
        "hygd/7_0.jpg,hygd,hygd-7,,glaucoma,",
        "mfiddr/e1.jpg,mfiddr,mfiddr-1,left,DR,3",
    )
    return tmp_path


def test_patients_and_eyes_are_read_and_grades_are_not(pool):
    table = OpenPool(pool).read()
    assert rows(table, "image_id", "path", "grade", "patient_id", "eye") == [
        ("grape/1_OD_1", "images/grape/1_OD_1.jpg", None, "grape-1", "right"),
        ("hrf/01_dr", "images/hrf/01_dr.jpg", None, None, None),
        ("hygd/7_0", "images/hygd/7_0.jpg", None, "hygd-7", None),
        ("mfiddr/e1", "images/mfiddr/e1.jpg", None, "mfiddr-1", "left"),
    ]
    assert set(table.manifest["dataset"]) == {"open_pool"}
    assert not has_grades(table.manifest)


def test_unusable_row_is_reported_and_unlisted_photograph_is_not_used(pool):
    with (pool / "pool.csv").open("a", encoding="utf-8") as file:
        file.write("hrf/02_dr.jpg,hrf,,,DR,\nhygd/7_0.jpg,hygd,hygd-7,both,,\n")
    files(pool, "images/toxo/x.jpg")
    source = OpenPool(pool)
    assert reasons(source.read()) == [
        ("hrf/02_dr", "pool.csv:6", "the file is not there: hrf/02_dr.jpg"),
        ("hygd/7_0", "pool.csv:7", 'eye "both" is not one of left, right, L, R, OS, OD'),
    ]
    assert source.unlisted() == ["images/toxo/x.jpg"]


@pytest.mark.parametrize("missing", ["pool.csv", "images"])
def test_missing_part_is_named(pool, missing):
    (pool / missing).rename(pool / "elsewhere")
    with pytest.raises(DataError, match=f"{missing} does not exist"):
        OpenPool(pool).read()


@pytest.mark.skipif(not REAL.is_dir(), reason="the pool is not here")
def test_pool_has_the_published_counts():
    table = OpenPool(REAL).read()
    assert table.problems == ()
    manifest = table.manifest
    assert (len(manifest), manifest["grade"].count()) == (2611, 0)
    sets = manifest["image_id"].str.partition("/")[0]
    assert sets.value_counts().to_dict() == {
        "rfmid2": 860, "hygd": 747, "grape": 451, "toxo": 412, "mfiddr": 96, "hrf": 45,
    }  # fmt: skip
    patients = manifest["patient_id"].groupby(sets).nunique()
    assert patients[patients > 0].to_dict() == {"grape": 109, "hygd": 288, "mfiddr": 12}
    assert manifest["eye"].groupby(sets).count()[["grape", "mfiddr"]].tolist() == [451, 96]


@pytest.mark.skipif(not REAL.is_dir(), reason="the pool is not here")
def test_patients_with_identical_files_are_one_group(tmp_path):
    """Patients 65, 81 and 180 of HYGD have files of patient 110, directly or through each other."""
    listed = pd.read_csv(REAL / "pool.csv", dtype=str)
    patients = [f"hygd-{number}" for number in (65, 81, 110, 180, 187, 197, 239, 257, 0)]
    copied = ["rfmid2/Test_set_886.jpg", "rfmid2/Training_set_798.jpg", "rfmid2/Test_set_167.jpg"]
    chosen = listed[listed["patient"].isin(patients) | listed["image"].isin(copied)]
    for image in chosen["image"]:
        (tmp_path / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REAL / "images" / image, tmp_path / "images" / image)
    chosen.to_csv(tmp_path / "pool.csv", index=False)

    manifest = Collection(OpenPool(tmp_path), tmp_path / "stores", 32, workers=1).manifest
    groups = groups_of(manifest).groupby(manifest["patient_id"].fillna(manifest["image_id"])).unique()
    assert all(len(names) == 1 for names in groups)
    names = groups.str[0]
    joined = [sorted(each) for each in names.groupby(names).groups.values()]
    assert sorted(joined) == [
        ["hygd-0"],
        ["hygd-110", "hygd-180", "hygd-65", "hygd-81"],
        ["hygd-187", "hygd-197"],
        ["hygd-239", "hygd-257"],
        ["rfmid2/Test_set_167"],
        ["rfmid2/Test_set_886", "rfmid2/Training_set_798"],
    ]
