"""Strict YAML, rule by rule, and digests."""

import contextlib
import hashlib
from pathlib import Path

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedm_ray.config import MAX_YAML_BYTES, Config, canonical_json, digest, load_yaml, parse_config, read_config
from cedm_ray.errors import ConfigurationError


class Inner(Config):
    rate: float = 0.1
    steps: tuple[int, ...] = (1, 2)
    word: str = "x"


class Outer(Config):
    seed: int = pydantic.Field(default=0, ge=0)
    inner: Inner = Inner()
    other: Inner | None = None


def values(text):
    return load_yaml(text, "space.yaml")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("-3.", -3.0),
        ("010", 10),
        ("+7", 7),
        ("15_000", 15000),
        ("1_000.5", 1000.5),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("0x10", "0x10"),
        ("0o10", "0o10"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("'1e-3'", "1e-3"),
        ("[1, no, 2.5]", [1, "no", 2.5]),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text, value):
    found = values(f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("seed: 1\nseed: 2\n", "2:1", "duplicate key 'seed'"),
        ("inner:\n  rate: 1\n  rate: 1\n", "3:3", "duplicate key 'rate'"),
        ("inner: {word: a, word: b}\n", "1:18", "duplicate key 'word'"),
        ("seed: !!python/object/apply:os.system ['true']\n", "1:7", "tag .*os.system is not allowed"),
        ("seed: !!int 3\n", "1:7", "tag tag:yaml.org,2002:int is not allowed"),
        ("seed: !mine 3\n", "1:7", "tag !mine is not allowed"),
        ("seed: &a 1\n", "1:7", "anchors and aliases are not allowed"),
        ("seed: *a\n", "1:7", "anchors and aliases are not allowed"),
        ("a: &a [x]\nb: [*a, *a]\n", "1:4", "anchors and aliases are not allowed"),
        ("1: 2\n", "1:1", "the key 1 is not a word"),
        ("null: 2\n", "1:1", "the key None is not a word"),
        ("[a]: 2\n", "1:1", r"the key \['a'\] is not a word"),
        ("seed: 1\n---\nseed: 2\n", "2:1", "another document"),
        ("seed: [1, 2\n", "2:1", "expected"),
        ("seed:\n\t- 1\n", "2:1", "cannot start any token"),
        ("seed: 'open\n", "2:1", "unexpected end of stream"),
        ("a:\n  b\n c: 1\n", "3:3", "mapping values are not allowed here"),
    ],
)
def test_what_a_configuration_must_not_hold_is_refused_with_line_and_column(text, where, what):
    with pytest.raises(ConfigurationError, match=rf"^space\.yaml:{where}: .*{what}"):
        load_yaml(text, "space.yaml")


def test_a_merge_key_merges_nothing():
    assert values("'<<': {a: 1}\nb: 2\n") == {"<<": {"a": 1}, "b": 2}
    assert values("<<: {a: 1}\nb: 2\n") == {"<<": {"a": 1}, "b": 2}


def test_depth_is_bounded():
    def nested(depth):
        return "a: " + "[" * depth + "]" * depth + "\n"

    assert values(nested(20))
    for depth in (40, 1000, 100_000):
        with pytest.raises(ConfigurationError, match=r"space\.yaml:1:\d+: nested deeper than 32 levels"):
            load_yaml(nested(depth), "space.yaml")
    blocks = "".join(" " * level + "k:\n" for level in range(1000))
    # The 32nd mapping's key would be the 33rd level.
    with pytest.raises(ConfigurationError, match=r"space\.yaml:32:32: nested deeper than 32 levels"):
        load_yaml(blocks, "space.yaml")


def test_size_is_bounded_in_bytes():
    body = "a: '" + "é" * (MAX_YAML_BYTES // 2) + "'\n"
    with pytest.raises(ConfigurationError, match=r"space\.yaml is 1,000,006 bytes; a configuration has at most 1,000"):
        load_yaml(body, "space.yaml")
    assert values("# " + "x" * (MAX_YAML_BYTES - 3) + "\n") == {}


@pytest.mark.parametrize(("text", "kind"), [("- 1\n", "list"), ("word\n", "str"), ("3\n", "int")])
def test_a_file_that_is_no_mapping_is_refused(text, kind):
    with pytest.raises(ConfigurationError, match=f"expected a mapping of sections, got {kind}"):
        load_yaml(text, "space.yaml")


def test_an_empty_file_is_an_empty_mapping():
    assert values("") == values("# nothing\n") == {}


def test_positions_are_those_of_the_keys():
    _, positions = load_yaml("seed: 1\ninner:\n    rate: 2\n    steps: [5, 6]\n", "space.yaml")
    assert positions[("seed",)] == (1, 1)
    assert positions[("inner", "rate")] == (3, 5)
    assert positions[("inner", "steps", 1)] == (4, 16)


def read(tmp_path, text, overrides=None):
    path = tmp_path / "space.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(Outer, path, overrides)


def test_a_file_becomes_a_frozen_configuration(tmp_path):
    found = read(tmp_path, "seed: 010\ninner: {rate: 1e-3, word: no}\n")
    assert found == Outer(seed=10, inner=Inner(rate=0.001, word="no"))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        found.seed = 3


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("sede: 1\n", "1:1", r"unknown key sede; did you mean seed\?"),
        ("seed: 1\ninner:\n  ratee: 2\n", "3:3", r"unknown key inner.ratee; did you mean rate\?"),
        ("other:\n  wrod: 2\n", "2:3", r"unknown key other.wrod; did you mean word\?"),
        ("zzzzz: 1\n", "1:1", "unknown key zzzzz$"),
        ("seed: -1\n", "1:1", "seed: input should be greater than or equal to 0, got -1"),
        ("seed: 1.5\n", "1:1", "seed: .*valid integer.*, got 1.5"),
        ("\ninner:\n  steps: [1, x]\n", "3:14", "inner.steps.1: .*valid integer.*, got 'x'"),
        ("inner:\n  rate: .nan\n", "2:3", "inner.rate: .*valid number.*, got '.nan'"),
        ("inner:\n  rate: 1e999\n", "2:3", "inner.rate: .*finite"),
        ("inner: 3\n", "1:1", "inner: .*valid dictionary.*, got 3"),
    ],
)
def test_what_breaks_a_rule_is_named_with_key_rule_value_line_and_column(tmp_path, text, where, what):
    with pytest.raises(ConfigurationError, match=rf"space\.yaml:{where}: {what}"):
        read(tmp_path, text)


def test_all_broken_rules_are_told_at_once(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, "seed: -1\nsede: 2\n")
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_key_is_named():
    class Needy(Config):
        name: str

    with pytest.raises(ConfigurationError, match=r"^here: name is missing$"):
        parse_config(Needy, {}, "here")


def test_overrides_replace_what_the_file_says(tmp_path):
    assert read(tmp_path, "inner: {word: a}\n", {"inner.word": "b", "seed": 5}).inner.word == "b"
    assert read(tmp_path, "", {"inner.word": "b"}).inner == Inner(word="b")
    assert read(tmp_path, "inner:\n", {"inner.word": "b"}).inner == Inner(word="b")
    with pytest.raises(ConfigurationError, match=r"space\.yaml: seed: .*greater than or equal to 0, got -5"):
        read(tmp_path, "", {"seed": -5})
    for text in ("inner: 3\n", "inner: [1]\n", "inner: text\n"):
        with pytest.raises(ConfigurationError, match="inner must be a mapping"):
            read(tmp_path, text, {"inner.word": "b"})


@pytest.mark.parametrize("make", ["missing", "folder", "binary", "utf-16"])
def test_a_file_that_cannot_be_read_is_named_with_its_absolute_path(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if make == "folder":
        (tmp_path / "a.yaml").mkdir()
    elif make != "missing":
        (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00" if make == "binary" else "seed: 1".encode("utf-16"))
    with pytest.raises(ConfigurationError, match=f"cannot read {tmp_path / 'a.yaml'}"):
        read_config(Outer, Path("a.yaml"))


SYNTAX = st.text(alphabet=st.sampled_from(list("abn01e.-+:,[]{}&*!|>'\"#%@`?~=<\\ \t\n\r\0é\u2028\ufeff")), max_size=60)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(max_size=80), SYNTAX))
def test_no_text_raises_anything_but_a_configuration_error(text):
    with contextlib.suppress(ConfigurationError):
        value, positions = load_yaml(text, "space.yaml")
        parse_config(Outer, value, "space.yaml", positions)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_configuration_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigurationError):
        read_config(Outer, path, {"inner.word": "b"})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(max_size=5), PLAIN, max_size=5), data=st.data())
def test_a_digest_does_not_depend_on_the_order_of_keys(value, data):
    shuffled = dict(data.draw(st.permutations(list(value.items()))))
    assert digest(shuffled) == digest(value)


def test_a_digest_is_the_sha256_of_the_canonical_text():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert digest(Outer(seed=1)) == digest(Outer(seed=1, inner=Inner()))
    assert digest(Outer(seed=1)) != digest(Outer(seed=2))
    assert digest([1, 2]) != digest([2, 1])
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"a": float("nan")})
