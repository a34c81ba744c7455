import pytest
from hydra.utils import get_object

from drgrade.renames import RENAMED, canonical, current


@pytest.mark.parametrize("name", RENAMED.values())
def test_every_present_name_can_be_imported(name):
    assert get_object(name)


@pytest.mark.parametrize(("earlier", "present"), RENAMED.items())
def test_names_are_replaced_in_nested_settings(earlier, present):
    def settings(name):
        return {"views": [{"_target_": name, "size": 32}], "name": "other"}

    assert current(settings(earlier)) == current(settings(present)) == settings(present)
    first = next(name for name, target in RENAMED.items() if target == present)
    assert canonical(settings(earlier)) == canonical(settings(present)) == settings(first)
