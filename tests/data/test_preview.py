import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_photographs import disc_photograph, save

from drgrade.data.preview import COLUMNS, ROWS, draw_disc, write_preview
from drgrade.errors import ConfigError, DataError

RED, GREEN = (255, 60, 60), (80, 255, 80)


def store(root, number, **columns):
    """Return manifest and images of photographs of 160 x 120, with a centred disc of radius 54."""
    for i in range(number):
        save(root / f"photos/p{i}.png", disc_photograph(seed=i))
    manifest = pd.DataFrame(
        {
            "image_id": [f"p{i}" for i in range(number)],
            "path": [f"photos/p{i}.png" for i in range(number)],
            "grade": pd.array([None if i % 6 == 5 else i % 6 for i in range(number)], dtype="Int64"),
            "width": 160,
            "height": 120,
            "circle_x": 80.0,
            "circle_y": 60.0,
            "circle_r": 54.0,
            "clear": 1.0,
            "stretch": 1.0,
        }
    ).assign(**columns)
    images = np.full((number, 16, 16, 3), 10, np.uint8) * np.arange(1, number + 1)[:, None, None, None]
    return manifest, root, images.astype(np.uint8)


def crops_on(sheets, number):
    """Return the grey levels of the crops on the sheets; crop i of `store` has level 10 (i + 1)."""
    levels = []
    for sheet in sheets:
        pixels = np.asarray(Image.open(sheet)).astype(int)
        width = pixels.shape[1] // COLUMNS
        height = 167
        for i in range(min(COLUMNS * ROWS, number - len(levels))):
            top, left = i // COLUMNS * height, i % COLUMNS * width
            levels.append(np.median(pixels[top + 60 : top + 90, left + width - 60 : left + width - 30]) / 10)
    return np.array(levels)


def test_preview_of_few_photographs_shows_all_in_order(tmp_path):
    sheets = write_preview(*store(tmp_path, 10), tmp_path / "sheets", 400)
    assert [sheet.name for sheet in sheets] == ["preview-001.jpg"]
    assert np.abs(crops_on(sheets, 10) - np.arange(1, 11)).max() < 0.3


def test_preview_is_spread_evenly_over_the_manifest(tmp_path):
    sheets = write_preview(*store(tmp_path, 21), tmp_path / "sheets", 5)
    assert np.abs(crops_on(sheets, 5) - [1, 6, 11, 16, 21]).max() < 0.3


def test_preview_fills_several_sheets_and_removes_older_ones(tmp_path):
    manifest, root, images = store(tmp_path, 3)
    many = COLUMNS * ROWS + 2
    rows = np.arange(many) % 3
    sheets = write_preview(manifest.iloc[rows], root, images[rows], tmp_path / "sheets", many)
    assert len(sheets) == 2
    first, last = (Image.open(sheet).size for sheet in sheets)
    assert first[0] == last[0]
    assert first[1] == ROWS * last[1]
    assert write_preview(manifest, root, images, tmp_path / "sheets", 3) == sheets[:1]
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["preview-001.jpg"]


@pytest.mark.parametrize("number", [0, -3])
def test_preview_of_no_photographs_is_refused(tmp_path, number):
    with pytest.raises(ConfigError, match=f"preview={number}"):
        write_preview(*store(tmp_path, 2), tmp_path / "sheets", number)


def test_missing_photograph_is_named_and_leaves_no_sheet(tmp_path):
    manifest, root, images = store(tmp_path, 3)
    (tmp_path / "photos/p1.png").unlink()
    with pytest.raises(DataError, match=r"p1\.png: the file is not there"):
        write_preview(manifest, root, images, tmp_path / "sheets", 3)
    assert not list((tmp_path / "sheets").iterdir())


def test_unwritable_preview_folder_is_an_error(tmp_path):
    (tmp_path / "sheets").write_text("a file")
    with pytest.raises(DataError, match="cannot write the preview"):
        write_preview(*store(tmp_path, 2), tmp_path / "sheets", 2)


def test_preview_of_an_empty_store_has_no_sheet(tmp_path):
    manifest, root, images = store(tmp_path, 1)
    assert write_preview(manifest[:0], root, images[:0], tmp_path / "sheets", 3) == []


def where(drawing, colour):
    """Return mean and half extent of the pixels of a colour: x, y, across, down."""
    near = np.abs(drawing.astype(int) - colour).max(axis=2) < 90
    rows, columns = np.nonzero(near)
    assert len(rows) > 50
    return columns.mean(), rows.mean(), np.ptp(columns) / 2, np.ptp(rows) / 2


@pytest.mark.parametrize("stretch", [1.0, 0.5, 1.6])
def test_preview_circles_match_the_manifest(stretch):
    pixels = np.zeros((300, 400, 3), np.uint8)
    drawing = draw_disc(pixels, (180.0, 160.0), 100.0, stretch, 0.7, (202, 152))
    assert drawing.shape == (152, 202, 3)
    for colour, radius in ((RED, 50), (GREEN, 35)):  # the photograph is drawn at half its size
        x, y, across, down = where(drawing, colour)
        assert abs(x - (1 + 90 - 0.5)) < 1
        assert abs(y - (1 + 80 - 0.5)) < 1
        assert abs(across - stretch * radius) < 1.5
        assert abs(down - radius) < 1.5


def test_disc_beyond_the_photograph_is_drawn_whole():
    drawing = draw_disc(np.zeros((100, 200, 3), np.uint8), (100.0, 50.0), 90.0, 1.0, 0.55, (200, 200))
    _, y, across, down = where(drawing, RED)
    assert abs(across - down) < 1.5
    assert abs(y - 99.5) < 1
    assert (drawing[2, 2] == drawing[-3, -3]).all()
    assert drawing[2, 2, 0] == 60  # grey around the photograph
