"""2,000 damaged search spaces."""

import contextlib
from pathlib import Path

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from cedm_ray.config import read_config
from cedm_ray.errors import ConfigurationError
from cedm_ray.search.space import SearchSpace

ROOT = Path(__file__).parents[2]
GOOD_SPACES = [path.read_text() for path in sorted((ROOT / "search_spaces").glob("*.yaml"))]
WORDS = [
    "1e-3",
    "010",
    "no",
    "yes",
    "on",
    "off",
    "~",
    "null",
    "true",
    ".inf",
    ".nan",
    "-.5",
    "1e999",
    "-1",
    "0",
    "2.5",
    "99999999999999999999",
    "0x10",
    "1_0",
    "''",
    '"a"',
    "[1,2]",
    "{a:",
    "1}",
    "[]",
    "{}",
    "!!python/object:os.system",
    "!!int",
    "&a",
    "*a",
    "<<:",
    "-",
    "?",
    ":",
    "|",
    ">",
    "%",
    "@",
    "`",
    '"\\e[31m"',
    "é",
    "1:30",
    "2026-11-24",
    "../..",
    "=cmd()",
    "\x00",
    "\t",
    "\x1b",
    "\ufeff",
    "\u2028",
]
LINES = [
    "clusterign: {}",
    "bound: {alpha: 2}",
    "  alpha: 0.96",
    "seed: 1",
    "name: <script>",
    "a: &a [1]",
    "b: [*a, *a]",
    "- 1",
    "---",
    "...",
    "? [x]",
    "x: " + "[" * 40,
    "x: " + "{a: " * 1000,
    "'unfinished",
]


def mutated_text(text: str, rng: np.random.Generator) -> str:
    """A search space of which some lines, keys, values or characters are others. Short, because PyYAML is slow."""
    lines = text.splitlines()
    first = rng.integers(len(lines))
    lines = lines[:8] + lines[first : first + rng.integers(20)]
    for _ in range(rng.integers(1, 5)):
        at = rng.integers(len(lines))
        word = WORDS[rng.integers(len(WORDS))]
        how = rng.choice(["value", "key", "line", "twice", "drop", "indent", "character"])
        if how == "value":
            lines[at] = f"{lines[at].partition(':')[0]}: {word}"
        elif how == "key":
            lines[at] = f"{word}:{lines[at].partition(':')[2]}"
        elif how == "line":
            lines.insert(at, LINES[rng.integers(len(LINES))])
        elif how == "twice":
            lines.insert(rng.integers(len(lines)), lines[at])
        elif how == "drop" and len(lines) > 1:
            del lines[at]
        elif how == "indent":
            lines[at] = " " * rng.integers(1, 5) + lines[at]
        else:
            spot = rng.integers(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:spot]
                + chr(rng.integers(0xD800) if rng.random() < 0.3 else rng.integers(128))
                + lines[at][spot:]
            )
    return "\n".join(lines) + "\n"


@seed(20261124)
@settings(settings.get_profile("fuzz"), max_examples=2000)
@given(number=st.integers(0, 2**63))
def test_yaml(quick, mutated, tmp_path, number):
    rng = np.random.default_rng(number)
    text = mutated_text(GOOD_SPACES[rng.integers(len(GOOD_SPACES))], rng).encode()
    path = tmp_path / "space.yaml"
    path.write_bytes(mutated(text, rng) if rng.random() < 0.1 else text)
    with quick(), contextlib.suppress(ConfigurationError):
        # What is taken can be settled, which is what a study does with it first.
        assert SearchSpace.from_settled(read_config(SearchSpace, path).settled())
