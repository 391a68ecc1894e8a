"""The page of results: a row for each recipe, made of the records of its runs alone.

    python compare.py results --format=results > new.md && mv new.md RESULTS.md

What others have published, and what a fingerprint of the data stands for, is in
`recipes/published.toml`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
import numpy as np

from commands import build
from commands.records import RECIPES, Record, check_committed, read_record, record_directories
from commands.saved_config import Code, DataInfo, SavedConfig
from commands.setting import ConfigError, Text
from data import variants
from loops.errors import printable
from loops.records.run import CONFIG, METRICS
from nets.table import NetSummary, trace

PUBLISHED = RECIPES / "published.toml"
_SECONDS = ("start", "training", "evaluation", "pictures")
_HEADER = (
    *("recipe", "data", "trained parameters", "multiply-adds", "epochs", "training images"),
    *("precision", "checkpoint", "variants", "test accuracy", "n", "seeds", "for comparison"),
    *(f"seconds: {', '.join(_SECONDS)}", "machine", "versions", "commit"),
)


_PAGE = """# Results

Generated from the records in `results/` by

```sh
python compare.py results --format=results > new.md && mv new.md RESULTS.md
```

A row is a recipe, `python train.py --flagfile=recipes/NAME.txt --seed=SEED` for each of n seeds;
`python recipes/rerun.py NAME` trains all of them again and says whether the row still holds.

Accuracy is that on the test split, which each run scores once, at the end; with n > 1 the mean of n
seeds and their standard deviation. The checkpoint is the last, or the best on a validation split
that was held out of the training images. Variants are the mirrored and shifted copies of a test
image, itself among them, whose mean probabilities are scored: with one, the image alone. Rows with
different numbers of them are not comparable, and the figures of others are of the image alone
unless they say otherwise. With `mixed_bfloat16`, the forward and backward pass compute in bfloat16,
and weights are float32.

Seconds are means of the same runs: from the start of `train.py` to the end of the first step, of
training, of evaluation, and of the predictions and pictures at the end (-: not counted). The time
of a run, where one is given, is the sum of the first three. Where one process trains several seeds
(`--seeds`), only the first waits for TensorFlow and the data.

The JPEG copy is CIFAR-10 whose images were compressed as JPEG (quality 75, colors at half
resolution), which costs accuracy: figures for the original data are not comparable with it.
docs/short_trainings.md has what the settings of airbench94, 94.01% on the original, reach there.
CIFAR-100 and Fashion-MNIST have no rows, since these data were not at hand.

{table}"""


class Published(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a recipe.

    Attributes:
        quick: whether it is among those that are trained again by default.
        accuracy: that others have published, in percent.
        source: where, and under which conditions.
    """

    quick: bool = False
    accuracy: Annotated[float, msgspec.Meta(gt=0, lt=100)] | None = None
    source: Text | None = None

    def __post_init__(self):
        if (self.accuracy is None) != (self.source is None):
            raise ValueError("accuracy and source need each other")


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `published.toml`.

    Attributes:
        recipes: what is known of them, by name.
        data: names of data by the fingerprint of their test split.
    """

    recipes: dict[str, Published]
    data: dict[str, Text]


def read_published(path: pathlib.Path | None = None) -> Known:
    """What is known of recipes and data; raises ConfigError if the file cannot be read."""
    path = path or PUBLISHED
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Known)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: {error}") from error


def as_results(paths: Iterable[str | os.PathLike]) -> str:
    """The page in Markdown, of the records at or below some paths.

    Raises:
        ConfigError, data.DataError, nets.NetError, RunError: a record is incomplete, damaged, not
            of its recipe, of other data than the recipe's others, of a net that has changed, or of
            code that is in no commit.
    """
    known = read_published()
    recipes: dict[pathlib.Path, list[Record]] = {}
    for path in record_directories(paths):
        record = read_record(path)
        check_committed(record)
        recipes.setdefault(path.parent, []).append(record)
    rows = [_row(records, known) for records in recipes.values()]
    cells = [[printable(x).replace("|", r"\|") for x in row] for row in (_HEADER, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    table = "\n".join([lines[0], "|" + "---|" * len(_HEADER), *lines[1:]])
    return _PAGE.format(table=table)


def _row(records: Sequence[Record], known: Known) -> list[str]:
    run, recipe = records[0].run, records[0].recipe
    stages = check_same_net(records).rows
    values = np.array([record.accuracy for record in records])
    accuracy = f"{values.mean():.2%}"  # Rounded as by the other formats.
    if len(values) > 1:
        accuracy += f" ± {100 * values.std(ddof=1):.2f}"
    other = known.recipes.get(recipe, Published())
    return [
        f"`{recipe}`",
        name_of_data(run.data, known),
        f"{sum(stage.trainable for stage in stages):,}",
        f"{sum(stage.flops for stage in stages if not stage.auxiliary):,}",
        f"{run.config.epochs:g}",
        f"{run.data.examples['train']:,}",
        run.config.precision,
        "best on val" if run.result["selected_on"] else "last",
        str(variants.count(run.config.tta)),
        accuracy,
        str(len(values)),
        _seeds(records),
        f"{other.accuracy}%, {other.source}" if other.source else "-",
        _seconds(records),
        _joined(record.cost.machine for record in records),
        _joined(_versions(code) for record in records for code in record.run.saved.code),
        _joined(record.cost.commit for record in records),
    ]


def _seeds(records: Sequence[Record]) -> str:
    """The seeds of records, such as 0-4 or 0, 2."""
    seeds = sorted(record.run.config.seed for record in records)
    if len(seeds) > 1 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def name_of_data(info: DataInfo, known: Known | None = None) -> str:
    """What the page calls some data.

    Args:
        info: the data.
        known: what `read_published` returns; read if it is not given.
    """
    known = read_published() if known is None else known
    return known.data.get(info.fingerprints["test"], info.name)


def check_same_net(records: Sequence[Record]) -> NetSummary:
    """Checks that records differ in their seeds alone, and are of the net as it is today.

    Returns:
        The trace of the net.

    Raises:
        ConfigError: they are not.
    """
    first, seen = records[0].run, {}
    for record in records:
        path = record.run.path
        if _besides_seed(record.run.saved) != _besides_seed(first.saved):
            raise ConfigError(f"{path / CONFIG} is of other data, or weights, than {first.path}")
        metrics = (path / METRICS).read_bytes()
        if metrics in seen:
            raise ConfigError(f"{path / METRICS} is the same as that of {seen[metrics]}")
        seen[metrics] = path
    summary = trace(build.build_net(first.config, first.data), first.data.image_shape)
    for record in records:
        for code in record.run.saved.code:
            if code.net != summary.fingerprint:
                raise ConfigError(
                    f"{record.run.path / CONFIG}: the operations of {first.config.net} have "
                    f"changed (fingerprint {summary.fingerprint}, was {code.net})"
                )
    return summary


def _besides_seed(saved: SavedConfig) -> SavedConfig:
    settings = dataclasses.replace(saved.settings, seed=0, data_dir=None)
    return dataclasses.replace(saved, settings=settings, code=())


def _seconds(records: Sequence[Record]) -> str:
    """The mean seconds by kind of work, and how often the runs were resumed."""
    costs = [record.cost for record in records]
    parts = []
    for name in _SECONDS:
        values = [getattr(cost.seconds, name) for cost in costs]
        parts.append("-" if None in values else f"{np.mean(values):,.0f}")
    resumed = sum(cost.processes - 1 for cost in costs)
    if resumed:
        parts[-1] += "; resumed once" if resumed == 1 else f"; resumed {resumed} times"
    return ", ".join(parts)


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _versions(code: Code) -> str:
    return f"TensorFlow {code.versions['tensorflow']}, Keras {code.versions['keras']}"
