"""Strict YAML into frozen pydantic models, and the digest of a configuration.

The YAML of a search space is the nesting of the rooms' configurations and nothing more. It is read as YAML 1.2 core:
`1e-3` is a number, `010` is ten, `no` is a word; tags, anchors, duplicate keys and oversized files are refused, each
error with its line and column.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic
import yaml

from cedm_ray.errors import ConfigurationError

MAX_YAML_BYTES = 1_000_000
MAX_YAML_DEPTH = 32


class Config(pydantic.BaseModel):
    """A frozen configuration that refuses unknown keys; it stands beside the function that it configures."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the YAML 1.2 core scalars, and without tags, anchors or duplicate keys."""

    # A new table, because the inherited one is shared with yaml.SafeLoader.
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"the tag {event.tag} is not allowed", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            problem = f"nested deeper than {MAX_YAML_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _construct_int(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        list("-+0123456789."),
    ),
):
    _StrictLoader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def load_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[tuple, tuple[int, int]]]:
    """Parse strict YAML. `name` is the file's name for messages.

    Returns the mapping and, for every key path in it, its (line, column), both counted from 1.
    Raises ConfigurationError with file, line and column.
    """
    if (size := len(text.encode())) > MAX_YAML_BYTES:
        raise ConfigurationError(f"{name} is {size:,} bytes; a configuration has at most {MAX_YAML_BYTES:,}")
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            value = {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigurationError(f"{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name}: not a YAML file ({error})") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name}: expected a mapping of sections, got {type(value).__name__}")
    positions: dict[tuple, tuple[int, int]] = {}
    if node is not None:
        _collect_positions(node, (), positions)
    return value, positions


def _collect_positions(node: yaml.Node, path: tuple, positions: dict[tuple, tuple[int, int]]) -> None:
    positions[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            _collect_positions(child, (*path, key.value), positions)
            positions[(*path, key.value)] = (key.start_mark.line + 1, key.start_mark.column + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_positions(child, (*path, index), positions)


def read_config(model: type[ConfigT], path: Path | str, overrides: dict[str, Any] | None = None) -> ConfigT:
    """Read a YAML file into `model`.

    overrides: values by dotted key that replace the file's (the command line's). Raises ConfigurationError naming
    key, rule, value, file, line and column; an unknown key comes with the nearest known one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigurationError(f"cannot read {path.absolute()}: {reason}") from None
    value, positions = load_yaml(text, str(path))
    for dotted, replacement in (overrides or {}).items():
        *parents, last = dotted.split(".")
        section = value
        for parent in parents:
            # A section that the file leaves empty is read as None.
            section[parent] = {} if section.get(parent) is None else section[parent]
            section = section[parent]
            if not isinstance(section, dict):
                raise ConfigurationError(f"{path}: {dotted.rpartition('.')[0]} must be a mapping, got {section!r}")
        section[last] = replacement
    return parse_config(model, value, str(path), positions)


def parse_config(
    model: type[ConfigT], value: dict[str, Any], name: str, positions: dict[tuple, tuple[int, int]] | None = None
) -> ConfigT:
    """Check a mapping against `model`; errors are reported as in `read_config`."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        lines = [_explain(model, item, name, positions or {}) for item in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(lines)) from None


def _explain(model: type[Config], item: dict[str, Any], name: str, positions: dict[tuple, tuple[int, int]]) -> str:
    path = tuple(item["loc"])
    known = path
    while known and known not in positions:
        known = known[:-1]
    where = ":".join([name, *map(str, positions[known])]) if known in positions and known else name
    key = ".".join(str(part) for part in path) or "the configuration"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _keys_at(model, path[:-1]), n=1)
        return f"{where}: unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    if item["type"] == "missing":
        return f"{where}: {key} is missing"
    message = item["msg"].removeprefix("Value error, ")
    got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
    return f"{where}: {key}: {message[:1].lower()}{message[1:]}{got}"


def _keys_at(model: type[pydantic.BaseModel], path: tuple) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        nested = [a for a in inner if isinstance(a, type) and issubclass(a, pydantic.BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces, no NaN. Digests are taken over it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Config | dict[str, Any] | list[Any]) -> str:
    """SHA-256 (hex) of a configuration's or a plain value's canonical JSON."""
    plain = value.model_dump(mode="json") if isinstance(value, Config) else value
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()
