import pickle

import pytest

from cedm_ray.data.names import Names

PLAIN = ["", "a.png", "b/é.png", "漢字", "not \udce9 UTF-8", "a.png"]


def test_names_are_what_a_tuple_of_them_is():
    names, plain = Names(PLAIN), tuple(PLAIN)
    assert len(names) == len(plain)
    assert list(names) == list(plain)
    for position in range(-len(plain), len(plain)):
        assert names[position] == plain[position]
    for part in (slice(1, 4), slice(None), slice(-2, None), slice(4, 1), slice(None, None, -2), slice(0, 99)):
        assert names[part] == plain[part]
    for position in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError, match="no name"):
            names[position]
    assert "漢字" in names
    assert "漢" not in names


def test_names_are_equal_to_any_sequence_of_the_same():
    assert Names(PLAIN) == tuple(PLAIN)
    assert Names(PLAIN) == PLAIN
    assert Names(PLAIN) == Names(PLAIN)
    assert Names(["ab", "c"]) != Names(["a", "bc"])
    assert Names(["a"]) != ["b"]
    assert Names(["a"]) != ["a", "a"]
    assert Names(["a"]) != 1
    assert not Names()


def test_names_travel():
    assert pickle.loads(pickle.dumps(Names(PLAIN))) == PLAIN
