"""The configuration and the result in a run directory, checked when read."""

import dataclasses
import math
import pathlib
from typing import Annotated, Literal, TypeVar

import msgspec

from commands.checks import check_is_run
from commands.config import Config
from commands.setting import ConfigError, Count, Text, convert
from loops.errors import RunError
from loops.records.run import CONFIG, RESULT, read_json, write_json

_PerChannel = tuple[Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)], ...]
_Split = Literal["train", "val", "test"]
_Content = TypeVar("_Content")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a run remembers of its data, to be scored without it and to refuse other data.

    Attributes:
        name: of the dataset.
        class_names: in the order of the labels.
        image_shape: (height, width, channels).
        mean, std: per channel, for pixels in [0, 1].
        examples: number of examples by split.
        fingerprints: of the examples by split.
    """

    name: Text
    class_names: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    image_shape: tuple[Count, Count, Count]
    mean: _PerChannel
    std: _PerChannel
    examples: dict[_Split, Count]
    fingerprints: dict[_Split, Text]

    def __post_init__(self):
        channels = self.image_shape[-1]
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names holds a name twice")
        if not len(self.mean) == len(self.std) == channels or min(self.std) < 1e-9:
            raise ValueError(f"mean and std must be {channels} numbers each, std above 0")
        for field in (self.examples, self.fingerprints):
            if not {"train", "test"} <= field.keys():
                raise ValueError("examples and fingerprints need train and test")
        if self.examples.keys() != self.fingerprints.keys():
            raise ValueError("examples and fingerprints are of different splits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What the initial weights of a run require of it, and which they are.

    Attributes:
        stem: of the net.
        mean, std: with which images are normalized, per channel, for pixels in [0, 1].
        fingerprint: of the weights; None if they are not there (any more), or Keras' own.
    """

    stem: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """The code that a run was trained with from a step on.

    Attributes:
        from_step: global step.
        net: fingerprint of the net's operations (`nets.table.trace`).
        versions: of Python and the libraries that compute, by name.
        sources: fingerprint of the code (`commands.provenance.sources`); None for runs of earlier
            versions.
    """

    from_step: Annotated[int, msgspec.Meta(ge=0)]
    net: Text
    versions: dict[str, str]
    sources: Text | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """The content of `config.json`.

    Attributes:
        settings: with every derived default filled in.
        data: what the data is.
        workers: number of processes that train together.
        init_fingerprint: of the contents of the file of `--init_from`, or of the checkpoint of the
            run, if there is one.
        code: what it was trained with; a later entry for each change that was allowed.
    """

    settings: Config
    data: DataInfo
    workers: Count = 1
    init_fingerprint: Text | None = None
    code: tuple[Code, ...] = ()


def read_config(run_dir: pathlib.Path) -> SavedConfig:
    """The configuration of the run in a directory.

    Raises:
        RunError: the directory is not a run's.
        ConfigError: a field is not what it should be; the message names the file and the field.
    """
    check_is_run(run_dir)
    path = run_dir / CONFIG
    content = read_json(path)
    settings = content.get("settings")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: it has no settings; correct the file, or use another run")
    earlier = {field.name: field.metadata["earlier"] for field in dataclasses.fields(Config)}
    earlier = {name: value for name, value in earlier.items() if value is not None}
    config = convert(earlier | settings, Config, str(path))
    for field in dataclasses.fields(Config):
        if field.metadata["derived"] and getattr(config, field.name) is None:
            raise ConfigError(f"{path}: --{field.name} has no value; correct the file")
    try:
        saved = decode({**content, "settings": dataclasses.asdict(config)}, SavedConfig)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; correct the file, or use another run") from error
    size, shape = config.image_size, saved.data.image_shape
    if size != (shape[0] if shape[0] == shape[1] else None):
        raise ConfigError(f"{path}: --image_size={size}, but data.image_shape is {shape}")
    return saved


def write_config(run_dir: pathlib.Path, config: SavedConfig) -> None:
    """Writes `config.json`, whole or not at all.

    Raises:
        SaveError: it cannot be written.
    """
    write_json(run_dir / CONFIG, dataclasses.asdict(config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Result:
    """The fields of `result.json` that are used later."""

    loss: float | None
    examples: Count
    step: Annotated[int, msgspec.Meta(ge=0)]
    checkpoint: str
    selected_on: Literal["val"] | None


def read_result(run_dir: pathlib.Path, metrics: tuple[str, ...] = ()) -> dict | None:
    """The result of the run in a directory, or None if it is not finished.

    Args:
        run_dir: the directory.
        metrics: names of figures that may be there; NaN stands for JSON's null.

    Raises:
        RunError: the file does not hold a result.
    """
    path = run_dir / RESULT
    if not path.exists():
        return None
    result = read_json(path)
    figures = [name for name in ("loss", *metrics) if name in result]
    numbers = msgspec.defstruct("Figures", [(name, float | None) for name in figures])
    try:
        decode(result, _Result)
        decode(result, numbers)
    except ValueError as error:
        raise RunError(
            f"{path} is not a result ({error}); remove it to have the run scored again"
        ) from error
    return result | {name: math.nan for name in figures if result[name] is None}


def decode(content: dict, cls: type[_Content]) -> _Content:
    """Raises ValueError, which names the place, if the content is not what a class describes."""
    try:
        return msgspec.convert(content, cls)
    except msgspec.ValidationError as error:
        what, _, place = str(error).replace("`", "").partition(" - at $.")
        raise ValueError(f"{place}: {what[0].lower()}{what[1:]}" if place else what) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object!r} is not text in UTF-8") from error
