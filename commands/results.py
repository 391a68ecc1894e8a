"""The page of results: a row for each recipe, made of the records of its runs alone.

    python compare.py results --format=results > RESULTS.md

A recipe is a directory of runs that differ in their seed alone. What others have published, and
what a fingerprint of the data stands for, is in `recipes/published.toml`.
"""

import pathlib
import tomllib
from collections.abc import Mapping, Sequence

import numpy as np

from commands import build
from commands.comparison import Entry, Group
from commands.setting import ConfigError
from loops.errors import printable
from loops.records.run import TIMES, read_json
from nets.table import trace

PUBLISHED = pathlib.Path(__file__).resolve().parent.parent / "recipes" / "published.toml"
_HEADER = (
    *("recipe", "data", "parameters", "multiply-adds", "epochs", "test accuracy", "n", "published"),
    *("seconds: start, training, evaluation", "machine", "versions, commit"),
)


_PAGE = """# Results

Made of the records in `results/` by

```sh
python compare.py results --format=results > RESULTS.md
```

A row is a recipe, `python train.py --flagfile=recipes/NAME.txt`; `python recipes/rerun.py NAME`
says whether it still holds. Accuracy is that on the test split, scored once, at the end; with n > 1
the mean of n seeds and their standard deviation. Seconds are those of a run: from the command to
the first step, of training, and of evaluation. What others have published is not of this data if
the data is a JPEG copy, CIFAR-10 whose images were compressed as JPEG, which costs accuracy.

{table}"""


def read_published(path: pathlib.Path | None = None) -> dict:
    """What is known of recipes and data; raises ConfigError if the file cannot be read."""
    path = path or PUBLISHED
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def as_results(groups: Sequence[Group]) -> str:
    """The page in Markdown.

    Raises:
        ConfigError: a run is in no directory of a recipe, or runs of one differ in more than the
            seed.
    """
    known = read_published()
    by_recipe: dict[str, Group] = {}
    for group in groups:
        for entry in group.finished:
            recipe = recipe_of(entry)
            if by_recipe.setdefault(recipe, group) is not group:
                raise ConfigError(
                    f"the runs in {entry.run.path.parent} differ in more than their seed; a recipe "
                    "is one directory"
                )
    rows = [_row(recipe, by_recipe[recipe], known) for recipe in sorted(by_recipe)]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (_HEADER, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    table = "\n".join([lines[0], "|" + "---|" * len(_HEADER), *lines[1:]])
    return _PAGE.format(table=table)


def recipe_of(entry: Entry) -> str:
    """The recipe of a run: the name of the directory that it is in."""
    return printable(entry.run.path.parent.name)


def _row(recipe: str, group: Group, known: Mapping) -> list[str]:
    saved = group.saved
    config, info = saved.settings, saved.data
    values = 100 * group.figure("top_1_accuracy")
    accuracy = f"{values.mean():.2f}%" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")
    other = known.get("recipes", {}).get(recipe, {})
    theirs = f"{other['accuracy']}%, {other['source']}" if "accuracy" in other else "-"
    data = known.get("data", {}).get(info.fingerprints["test"], info.name)
    costs = [read_json(path) for path in _times(group)]
    stages = trace(build.build_net(config, info), info.image_shape).rows
    return [
        f"`{recipe}`",
        data,
        f"{sum(stage.trainable for stage in stages):,}",
        f"{sum(stage.flops for stage in stages if not stage.auxiliary):,}",
        f"{config.epochs:g}",
        accuracy,
        str(len(values)),
        theirs,
        ", ".join(_mean(costs, name) for name in ("start", "training", "evaluation")),
        _joined(cost["machine"] for cost in costs),
        _joined(f"{_versions(saved)}, {cost['commit']}" for cost in costs),
    ]


def _times(group: Group) -> list[pathlib.Path]:
    paths = (entry.run.path / TIMES for entry in group.finished)
    return [path for path in paths if path.exists()]


def _mean(costs: Sequence[Mapping], name: str) -> str:
    return f"{np.mean([cost['seconds'][name] for cost in costs]):,.0f}" if costs else "-"


def _joined(texts) -> str:
    return "; ".join(dict.fromkeys(texts)) or "-"


def _versions(saved) -> str:
    versions = saved.code[-1].versions
    return f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}"
