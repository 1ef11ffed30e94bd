"""Assignments from outside and ours on disk."""

import argparse
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cedm_ray.clustering.assignment import ClusterAssignment
from cedm_ray.clustering.assignment_file import from_labels, read_assignment, write_assignment
from cedm_ray.errors import InputDataError, IntegrityError, SecurityError

IDS = np.array([3, 0, 3, 7, 0, 1])
NAMES = tuple(f"{i}.png" for i in range(6))


def read(path, num_images=6, **kwargs):
    return read_assignment(path, num_images=num_images, **kwargs)


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


# Labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_type_become_an_assignment(dtype):
    found = from_labels(IDS.astype(dtype))
    assert (found.labels.tolist(), found.num_clusters, found.method) == (IDS.tolist(), 8, "labels")
    assert from_labels(IDS, num_clusters=20).num_clusters == 20


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, -1, 2]), "got -1 at row 1"),
        (np.array([0.0, 1.0]), "must be integers, got float64"),
        (np.array([True, False]), "must be integers, got bool"),
        (np.array([[0, 1]]), r"non-empty vector \[N\], got shape \[1, 2\]"),
        (np.array([], dtype=int), "non-empty"),
        (np.array([0, 2**31]), "got 2147483648 at row 1"),
    ],
)
def test_labels_that_are_no_ids_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        from_labels(labels)


# .npz ---------------------------------------------------------------------------------------------------------------


def test_the_only_integer_vector_of_an_npz_is_taken(tmp_path):
    np.savez(tmp_path / "a.npz", ids=IDS.astype(np.uint16), q=np.ones(6), table=np.ones((6, 2), int))
    found = read(tmp_path / "a.npz")
    assert (found.labels.tolist(), found.num_clusters, found.method) == (IDS.tolist(), 8, "imported")
    assert (found.provenance["file"], found.provenance["ids"]) == ("a.npz", "ids")
    assert len(found.provenance["sha256"]) == 64
    assert read(tmp_path / "a.npz", num_clusters=10).num_clusters == 10


def test_one_of_several_is_chosen_by_its_key(tmp_path):
    np.savez(tmp_path / "a.npz", **{"x": IDS, "y/C=9": IDS[::-1]})
    with pytest.raises(InputDataError, match=r"a.npz has 2 integer arrays \[N\]: x, y/C=9") as caught:
        read(tmp_path / "a.npz")
    assert "a.npz:KEY" in caught.value.mend
    assert read(f"{tmp_path / 'a.npz'}:y/C=9").labels.tolist() == IDS[::-1].tolist()
    with pytest.raises(InputDataError, match=r"a\.npz has no array z; it has x, y"):
        read(f"{tmp_path / 'a.npz'}:z")


def test_arrays_of_objects_are_never_read(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.array([1, "two"], dtype=object))
    with pytest.raises(
        InputDataError, match=r"no integer array \[N\]: ids \[2\] holds Python objects, which are never"
    ):
        read(tmp_path / "a.npz")
    with pytest.raises(InputDataError, match="ids holds Python objects, which are never read"):
        read(f"{tmp_path / 'a.npz'}:ids")


def test_an_npz_without_ids_says_what_it_has_instead_and_asks_for_no_key(tmp_path):
    np.savez(tmp_path / "a.npz", ids=IDS.astype(float), table=np.ones((6, 2), int), names=IDS.astype(str))
    with pytest.raises(InputDataError) as caught:
        read(tmp_path / "a.npz")
    told = "ids [6] holds fractions; table [6, 2] holds whole numbers; names [6] holds text"
    assert str(caught.value).endswith(f"a.npz has no integer array [N]: {told}")
    assert "KEY" not in caught.value.mend


def test_an_array_of_another_length_is_refused_by_its_header(tmp_path):
    """The header says 10^12 rows; nothing of that size is made."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("ids.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputDataError, match="has 1,000,000,000,000 cluster ids and there are 6 images"):
        read(tmp_path / "a.npz")


def test_what_is_no_npz_is_named(tmp_path):
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(InputDataError, match=r"a.npz is no .npz file"):
        read(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputDataError, match=r"b.npz is no .npz file"):
        read(tmp_path / "b.npz")


# cluster_ids.pt -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_the_official_file_is_read_whatever_its_integer_type(tmp_path, dtype):
    torch.save(torch.from_numpy(IDS).to(dtype), tmp_path / "cluster_ids.pt")
    found = read(tmp_path / "cluster_ids.pt")
    assert (found.labels.tolist(), found.num_clusters, found.num_used) == (IDS.tolist(), 8, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(6), "must be integers, got float32"),
        (torch.ones(6, dtype=torch.bfloat16), "no array of integers"),
        (torch.ones(6, 1, dtype=torch.int64), r"non-empty vector \[N\], got shape \[6, 1\]"),
        (torch.tensor([0, 1, 2, -4, 0, 0]), "got -4 at row 3"),
        (torch.arange(5), "has 5 cluster ids and there are 6 images"),
        ({"ids": torch.arange(6)}, "holds dict, not one tensor"),
    ],
)
def test_other_tensors_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "cluster_ids.pt")
    with pytest.raises(InputDataError, match=message):
        read(tmp_path / "cluster_ids.pt")


def test_pickled_objects_are_refused(tmp_path):
    torch.save(argparse.Namespace(a=1), tmp_path / "cluster_ids.pt")
    with pytest.raises(SecurityError, match="holds pickled Python objects") as caught:
        read(tmp_path / "cluster_ids.pt")
    assert "save the tensor of ids alone" in caught.value.mend


# Parquet ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["cluster", "cluster_id", "label"])
def test_the_ids_of_another_programs_parquet_are_found_by_their_column(tmp_path, column):
    path = parquet(tmp_path / "a.parquet", **{"file": list(NAMES), column: IDS.astype(np.int16)})
    found = read(path)
    assert (found.labels.tolist(), found.method, found.provenance["ids"]) == (IDS.tolist(), "imported", column)


def test_clusters_come_before_labels(tmp_path):
    path = parquet(tmp_path / "a.parquet", label=np.zeros(6, int), cluster=IDS)
    assert read(path).labels.tolist() == IDS.tolist()


def test_parquet_that_holds_no_ids_is_named(tmp_path):
    with pytest.raises(InputDataError, match="has no column cluster or cluster_id or label; it has x"):
        read(parquet(tmp_path / "a.parquet", x=IDS))
    with pytest.raises(InputDataError, match="cluster is empty at row 2"):
        read(parquet(tmp_path / "a.parquet", cluster=pa.array([0, 1, None, 1, 1, 1])))
    with pytest.raises(InputDataError, match="must be integers, got float64"):
        read(parquet(tmp_path / "a.parquet", cluster=IDS.astype(float)))
    with pytest.raises(InputDataError, match="must be integers, got object"):
        read(parquet(tmp_path / "a.parquet", cluster=list("abcdef")))
    with pytest.raises(InputDataError, match="must lie in \\[0, 5\\), got 7 at row 3"):
        read(parquet(tmp_path / "a.parquet", cluster=IDS), num_clusters=5)
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(InputDataError, match="cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


# Ours ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def assignment():
    return ClusterAssignment(
        labels=IDS.astype(np.int32), num_clusters=12, method="temi", provenance={"seed": 3, "config": {"gamma": 0.6}}
    )


def test_what_is_written_is_read_back_with_all_that_is_known(tmp_path, assignment):
    write_assignment(tmp_path / "a.parquet", assignment, NAMES)
    found = read(tmp_path / "a.parquet", names=NAMES)
    assert found.labels.tolist() == assignment.labels.tolist()
    assert (found.num_clusters, found.method, found.provenance) == (12, "temi", assignment.provenance)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_other_programs_can_read_what_is_written(tmp_path, assignment):
    write_assignment(tmp_path / "a.parquet", assignment, NAMES)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["name", "cluster"]
    assert table["name"].to_pylist() == list(NAMES)
    assert table["cluster"].to_pylist() == IDS.tolist()
    about = json.loads(table.schema.metadata[b"cedm_ray"])
    assert (about["method"], about["num_clusters"], about["num_used"]) == ("temi", 12, 4)
    assert about["provenance"] == assignment.provenance


def test_equal_assignments_give_equal_bytes(tmp_path, assignment):
    for name in "ab":
        write_assignment(tmp_path / name, assignment, NAMES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_assignment_of_other_images_is_refused(tmp_path, assignment):
    write_assignment(tmp_path / "a.parquet", assignment, NAMES)
    with pytest.raises(InputDataError, match=r"row 1 is '1\.png', here it is 'x\.png'"):
        read(tmp_path / "a.parquet", names=("0.png", "x.png", *NAMES[2:]))
    with pytest.raises(InputDataError, match="has 6 cluster ids and there are 7 images"):
        read(tmp_path / "a.parquet", num_images=7)
    with pytest.raises(InputDataError, match="has 12 clusters, and 8 were asked for"):
        read(tmp_path / "a.parquet", num_clusters=8)
    with pytest.raises(ValueError, match="one for each of 6 images, got 5"):
        write_assignment(tmp_path / "b.parquet", assignment, NAMES[:5])


@pytest.mark.parametrize("where", ["ids", "about", "names"])
def test_a_file_of_ours_that_was_changed_is_noticed(tmp_path, assignment, where):
    write_assignment(tmp_path / "a.parquet", assignment, NAMES)
    table = pq.read_table(tmp_path / "a.parquet")
    metadata = dict(table.schema.metadata)
    if where == "ids":
        table = table.set_column(1, table.schema.field(1), pa.array(IDS[::-1], pa.int32()))
    elif where == "names":
        table = table.set_column(0, table.schema.field(0), pa.array(NAMES[::-1]))
    else:
        metadata[b"cedm_ray"] = metadata[b"cedm_ray"].replace(b'"num_clusters":12', b'"num_clusters":9')
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    with pytest.raises(IntegrityError, match="its SHA-256 does not match"):
        read(tmp_path / "a.parquet")


def test_flipped_bytes_are_noticed(tmp_path, assignment):
    write_assignment(tmp_path / "a.parquet", assignment, NAMES)
    data = (tmp_path / "a.parquet").read_bytes()
    for position in range(4, len(data) - 4, 37):
        damaged = bytearray(data)
        damaged[position] ^= 1
        (tmp_path / "b.parquet").write_bytes(bytes(damaged))
        try:
            found = read(tmp_path / "b.parquet", names=NAMES)
        except (InputDataError, IntegrityError):
            continue
        # What is left are bits without meaning, such as of a statistic.
        assert found.labels.tolist() == IDS.tolist()
        assert (found.num_clusters, found.provenance) in ((12, assignment.provenance), (8, found.provenance))


# Places -------------------------------------------------------------------------------------------------------------


def test_missing_files_and_other_kinds_are_named(tmp_path):
    with pytest.raises(InputDataError, match=r"there is no file .*none.npz") as caught:
        read(tmp_path / "none.npz")
    assert "cluster_ids.pt" in caught.value.mend
    (tmp_path / "a.csv").write_text("0\n1\n")
    with pytest.raises(InputDataError, match=r"its name ends in .csv"):
        read(tmp_path / "a.csv")
