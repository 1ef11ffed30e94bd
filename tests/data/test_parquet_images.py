import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError


def hugging_face(contents, labels=None, *, column="image") -> pa.Table:
    rows = [None if data is None else {"bytes": data, "path": f"/etc/{row}.png"} for row, data in enumerate(contents)]
    columns = {column: pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    return pa.table(columns if labels is None else columns | {"label": pa.array(labels)})


@pytest.mark.parametrize("rows_per_group", [1, 2, 100])
def test_rows_are_images_in_order_with_their_labels(tmp_path, png, rows_per_group):
    pictures = [png((level, 0, 0)) for level in range(5)]
    pq.write_table(hugging_face(pictures, [4, 3, 2, 1, 0]), tmp_path / "a.parquet", row_group_size=rows_per_group)
    source = open_source(tmp_path / "a.parquet")
    assert (source.kind, source.labelled, len(source)) == ("parquet", True, 5)
    assert [(entry.content, entry.label) for entry in source] == list(zip(pictures, [4, 3, 2, 1, 0], strict=True))
    assert [entry.name for entry in source.at([1, 3])] == ["a.parquet/00000001", "a.parquet/00000003"]


def test_several_files_are_one_source_in_the_order_of_their_names(tmp_path, png):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for shard in (1, 0):
        table = hugging_face([png((shard, row, 0)) for row in range(2)])
        pq.write_table(table, tmp_path / "set" / "data" / f"train-0000{shard}-of-00002.parquet")
    names = [f"train-0000{shard}-of-00002.parquet/0000000{row}" for shard in range(2) for row in range(2)]
    for where in (tmp_path / "set", tmp_path / "set" / "data", tmp_path / "set/data/train-*.parquet"):
        source = open_source(where)
        assert [entry.name for entry in source] == names
        assert [entry.content for entry in source.at([0, 3])] == [png((0, 0, 0)), png((1, 1, 0))]


def test_several_splits_are_not_mixed(tmp_path, png):
    for split in ("train", "test"):
        pq.write_table(hugging_face([png()]), tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputDataError, match="holds several splits: test, train") as caught:
        open_source(tmp_path)
    assert "train-*" in caught.value.mend


def test_a_plain_binary_column_is_images(tmp_path, png):
    for columns in ({"x": [png()]}, {"other": [b"a"], "jpg": [png()]}):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        assert [entry.content for entry in open_source(tmp_path / "a.parquet")] == [png()]


def test_a_file_without_a_column_of_images_says_its_columns(tmp_path):
    for columns in ({"text": ["a"], "n": [1]}, {"a": [b"x"], "b": [b"y"]}, {"image": [{"path": "a.png"}]}):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(InputDataError, match=rf"no column of images; its columns are {next(iter(columns))} \("):
            open_source(tmp_path / "a.parquet")


def test_a_path_alone_is_never_followed(tmp_path, png, read):
    table = hugging_face([png(), None, png()])
    image = table["image"].combine_chunks().to_pylist()
    image[2] = {"bytes": None, "path": "/etc/passwd"}
    pq.write_table(pa.table({"image": pa.array(image, table.schema.field("image").type)}), tmp_path / "a.parquet")
    reason = "no bytes; a path alone is not followed"
    assert read(tmp_path / "a.parquet") == (
        ["a.parquet/00000000"],
        {"a.parquet/00000001": reason, "a.parquet/00000002": reason},
    )


@pytest.mark.parametrize(("labels", "shown"), [([1, None], "null"), ([1, -1], "-1"), ([1, 2.5], "1.0")])
def test_a_bad_label_is_named(tmp_path, png, labels, shown):
    pq.write_table(hugging_face([png(), png()], labels), tmp_path / "a.parquet")
    with pytest.raises(InputDataError, match=rf"a.parquet: label of row \d has the label {shown}"):
        open_source(tmp_path / "a.parquet")


def test_labels_in_some_files_only_are_an_error(tmp_path, png):
    pq.write_table(hugging_face([png()], [1]), tmp_path / "a.parquet")
    pq.write_table(hugging_face([png()]), tmp_path / "b.parquet")
    with pytest.raises(InputDataError, match=r"of the 2 files .* 1 have a column of labels"):
        open_source(tmp_path)


def test_damaged_and_empty_files_are_errors(tmp_path, png):
    path = tmp_path / "a.parquet"
    pq.write_table(hugging_face([]), path)
    with pytest.raises(InputDataError, match="it has no rows"):
        open_source(path)
    pq.write_table(hugging_face([png()]), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputDataError, match="is not a Parquet file that can be read"):
        open_source(path)


def test_a_file_that_inflates_too_much_is_refused(tmp_path):
    pq.write_table(
        pa.table({"image": [bytes(10**7)]}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False
    )
    with pytest.raises(InputDataError, match=r"inflates more than images.max_ratio \(200\) times"):
        open_source(tmp_path / "a.parquet")


def test_an_oversized_image_is_refused(tmp_path, png, read):
    pq.write_table(hugging_face([png()]), tmp_path / "a.parquet")
    refused = read(tmp_path / "a.parquet", max_file_bytes=10)[1]["a.parquet/00000000"]
    assert refused.endswith("more than images.max_file_bytes (10)")


def test_a_table_that_holds_too_much_is_an_error(tmp_path, png, read):
    pq.write_table(hugging_face([png()] * 3), tmp_path / "a.parquet")
    with pytest.raises(InputDataError, match=r"more files than images.max_files \(2\)"):
        read(tmp_path / "a.parquet", max_files=2)
    with pytest.raises(InputDataError, match=r"bytes unpacked, more than images.max_unpacked_bytes \(9\)"):
        read(tmp_path / "a.parquet", max_unpacked_bytes=9)
