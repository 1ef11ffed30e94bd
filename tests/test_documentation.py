"""What the README and the templates say is true: its tree, its links, its commands, its keys."""

import re
from pathlib import Path

import click
import pytest
import yaml

from cedm_ray.cli import cli
from cedm_ray.config import Config, read_config
from cedm_ray.diffusion.state import learning_rate_at
from cedm_ray.search.space import SearchSpace

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(ROOT.glob("*.md"))


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)


def tree_paths() -> list[str]:
    """The paths of the README's tree: indentation by four columns a level, a folder ends with a slash."""
    (block,) = [block for block in code_blocks(README) if "cedm_ray/" in block and "errors.py" in block]
    paths, parents = [], []
    for line in block.splitlines():
        name = re.match(r"[│├└─\s]*([\w./-]+)", line)
        if name is None:
            continue
        depth = name.start(1) // 4
        path = "/".join([*parents[:depth], name[1].rstrip("/")])
        if name[1].endswith("/"):
            parents[depth:] = [name[1].rstrip("/")]
        paths.append(path)
    return paths


def test_the_tree_names_only_what_exists():
    for path in tree_paths():
        assert (ROOT / path).exists(), path


def test_the_tree_names_every_file_of_the_package():
    named = set(tree_paths())
    for path in (ROOT / "cedm_ray").rglob("*.py"):
        if path.name not in ("__init__.py",):
            assert str(path.relative_to(ROOT)) in named, path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_project_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"


def test_every_command_of_the_readme_exists_with_its_options():
    lines = [line.strip() for block in code_blocks(README) for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("cedm-ray ")]
    assert {line.split()[1] for line in commands} >= {"search", "sample"}
    for line in commands:
        verb = cli.commands[line.split()[1]]
        if isinstance(verb, click.Group):
            verb = verb.commands[line.split()[2]]
        known = {name for option in verb.params for name in option.opts}
        for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", line.partition("#")[0]):
            assert option in known, f"{line}: {option}"


def test_every_make_command_of_the_readme_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"quickstart", "test"} <= named <= targets


def keys(model: type[Config], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Config)
        found |= keys(field.annotation, f"{prefix}{name}.") if nested else {prefix + name}
    return found


def flattened(value: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, inner in value.items():
        nested = isinstance(inner, dict) and inner
        found |= flattened(inner, f"{prefix}{name}.") if nested else {prefix + name}
    return found


def test_the_template_has_every_key_and_comments_on_it():
    text = (ROOT / "search_spaces/new_dataset.yaml").read_text()
    assert flattened(yaml.safe_load(text)) == keys(SearchSpace)
    above = ""
    for line in text.splitlines():
        if re.match(r"\s*\w+: \S", line):
            assert "#" in line or above.strip().startswith("#"), f"no comment: {line}"
        above = line


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_can_be_read_and_tells_its_promise(path):
    space = read_config(SearchSpace, path)
    assert space.name == path.stem
    head = path.read_text().partition("\nname:")[0]
    for word in ("Command:", "Cost"):
        assert word in head, f"{path.name} does not tell its {word}"
    assert f"search_spaces/{path.name}" in head or "make " in head


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "ffhq64", "ffhq128", "afhq64"])
def test_the_presets_hold_the_papers_settings(name):
    """Table 7 and method.md 3.5; the differences between paper and code are said in each file."""
    space = read_config(SearchSpace, ROOT / f"search_spaces/{name}.yaml")
    small = name.startswith("cifar")
    training, network = space.training, space.network
    assert (training.batch_size, training.learning_rate) == ((1024, 1e-3) if small else (512, 2e-4))
    assert network.channel_mult == ((2, 2, 2) if small else (1, 2, 2, 2))
    assert network.dropout == (0.13 if small else 0.25 if name == "afhq64" else 0.05)
    assert space.augmentation.probability == (0.12 if small else 0.15)
    assert space.sampling.num_steps == (18 if small else 40)
    assert space.images.size == (32 if small else 128 if name == "ffhq128" else 64)
    assert (training.ema_halflife_kimg, training.ema_rampup_ratio) == (500, 0.05)
    # Ours: benchmarks/search_cost.py says why.
    assert space.rungs.rungs_kimg == (20_000, 50_000, 100_000)
    assert (space.candidates.count, space.rungs.rule, space.rungs.reduction_factor) == (5, "halving", 2)
    assert (space.finals.budget_kimg, space.finals.evaluate, space.evaluation.final_samples) == (200_000, True, 50_000)
    assert learning_rate_at(5_000_000, training, 100_000) == pytest.approx(training.learning_rate / 2)
    assert (space.clustering.num_heads, space.clustering.gamma) == (50, 0.6)
    assert (space.clustering.teacher_momentum, space.clustering.marginal_momentum) == (0.996, 0.9)
    # A checkpoint at each rung's multiple, so that no rung waits for one of its own.
    assert all(rung % space.checkpoints.every_kimg == 0 for rung in (*space.rungs.rungs_kimg, space.finals.budget_kimg))


def test_every_verb_and_option_has_a_help_text():
    groups = [cli, *(verb for verb in cli.commands.values() if isinstance(verb, click.Group))]
    for name, verb in [item for group in groups for item in group.commands.items()]:
        assert verb.help, name
        for option in verb.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name}"
