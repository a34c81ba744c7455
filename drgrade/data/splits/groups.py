"""What must stay together: the photographs of a patient, and the copies of a photograph."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def groups_of(manifest: pd.DataFrame) -> pd.Series:
    """Name the group of each photograph.

    Groups are the connected components of two relations: same patient, and copies of one photograph. So two
    patients who share a copied photograph are one group.

    Args:
        manifest: Columns image_id and patient_id (may be missing); ``duplicate``, where there is such a
            column, names the cluster of copies that a photograph belongs to (missing: it has none); ``role``
            (missing: labelled).

    Returns:
        Strings, aligned with the manifest: ``patient:ID``; ``image:ID`` where no patient is known. A group
        of several patients, or of several photographs without a patient, is called after the first of its
        patients in alphabetical order, or else of its photographs; after labelled ones where it has any, so
        that a copy in another data set does not rename it.
    """
    own = "image:" + manifest["image_id"].astype("string")
    names = ("patient:" + manifest["patient_id"].astype("string")).fillna(own)
    if "duplicate" in manifest and manifest["duplicate"].notna().any():
        labelled = names[manifest["role"].fillna("labelled") == "labelled"] if "role" in manifest else names
        names = _joined(names, manifest["duplicate"].astype("string"), set(labelled))
    return names.astype(str).rename("group")


def _joined(names: pd.Series, clusters: pd.Series, labelled: set[str]) -> pd.Series:
    """Rename groups that a cluster of copies joins."""
    row, found = pd.factorize(names)
    unique = [str(name) for name in found]
    cluster, labels = pd.factorize(clusters)  # -1: none
    copied = cluster >= 0
    component = _components(row[copied], cluster[copied], len(unique), len(labels))

    # Labelled ones first, "patient:" before "image:", each in alphabetical order.
    def rank(i: int) -> tuple[bool, bool, str]:
        return unique[i] not in labelled, unique[i].startswith("image:"), unique[i]

    order = sorted(range(len(unique)), key=rank)
    first: dict[int, str] = {}
    for i in order:
        first.setdefault(int(component[i]), unique[i])
    return pd.Series([first[int(component[i])] for i in row], index=names.index, dtype="string")


def _components(
    group: npt.NDArray[np.intp], cluster: npt.NDArray[np.intp], groups: int, clusters: int
) -> npt.NDArray[np.int32]:
    """Component of each group in the bipartite graph of groups and clusters, (groups,)."""
    size = groups + clusters
    edges = coo_array((np.ones(len(group), np.int8), (group, groups + cluster)), shape=(size, size))
    _, component = connected_components(edges.tocsr(), directed=False)
    return np.asarray(component[:groups], np.int32)
