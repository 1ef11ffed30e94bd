import numpy as np
import pytest

from cedm_ray.data.sources import open_source
from cedm_ray.errors import InputDataError


def test_an_imported_set_is_a_source_that_gives_the_same_set(tmp_path, import_all):
    first = import_all("sklearn:digits", tmp_path / "first")
    source = open_source(tmp_path / "first")
    assert (source.kind, len(source), source.labelled, source.name) == ("image-set", 1797, True, "digits")
    second = import_all(tmp_path / "first", tmp_path / "second")
    assert (second.digest, second.names) == (first.digest, first.names)
    assert np.array_equal(second.labels, first.labels)
    assert [entry.name for entry in source.at([5, 3])] == ["digits/0005", "digits/0003"]


def test_a_set_is_brought_to_another_size_as_any_images_are(tmp_path, import_all):
    import_all("sklearn:digits", tmp_path / "first")
    small = import_all(tmp_path / "first", tmp_path / "small", size=4)
    direct = import_all("sklearn:digits", tmp_path / "direct", size=4)
    assert small.digest == direct.digest
    with pytest.raises(InputDataError, match=r"8x8 is smaller than images.size"):
        import_all(tmp_path / "first", tmp_path / "large", size=16)
