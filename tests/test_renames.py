import pytest
from hydra.utils import get_object

from drgrade.renames import RENAMED, canonical, current


@pytest.mark.parametrize("name", RENAMED.values())
def test_every_present_name_can_be_imported(name):
    assert get_object(name)


@pytest.mark.parametrize(("first", "present"), RENAMED.items())
def test_names_are_replaced_in_nested_settings(first, present):
    earlier = {"views": [{"_target_": first, "size": 32}], "name": "other"}
    later = {"views": [{"_target_": present, "size": 32}], "name": "other"}
    assert current(earlier) == current(later) == later
    assert canonical(earlier) == canonical(later) == earlier
