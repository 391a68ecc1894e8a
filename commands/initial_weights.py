"""Where a run starts from: Keras' weights, a file of them, or the best weights of another run."""

import os
import pathlib
import zlib
from collections.abc import Callable

import nets
from commands.config import Config
from commands.run import Run
from commands.saved_config import DataInfo, Origin, read_config
from commands.setting import ConfigError
from loops.errors import RunError
from loops.records.checkpoint_files import saved_steps
from loops.records.run import CHECKPOINTS
from nets import pretrained, transfer

# Copies the weights into a built net; returns whether its head was included.
Start = Callable[[nets.Net], bool]


def find_origin(config: Config, run_dir: pathlib.Path | None = None) -> Origin | None:
    """What the weights of `--init_from` require of a run; None without initial weights.

    Once the run has checkpoints, what it started from is not needed, and compared if it is there.

    Args:
        config: as requested.
        run_dir: the directory of the run, if it is known.

    Raises:
        ConfigError, RunError, pretrained.PretrainedError: there are no such weights, or they are
            not for this net.
    """
    if config.init_from is None:
        return None
    if run_dir is not None and saved_steps(run_dir / CHECKPOINTS):
        saved = read_config(run_dir)
        return Origin(
            stem=saved.settings.stem,
            mean=saved.data.mean,
            std=saved.data.std,
            fingerprint=init_fingerprint(config.init_from),
        )
    if config.init_from != "keras" and not os.path.exists(config.init_from):
        raise ConfigError(
            f"--init_from={config.init_from} is neither the word keras, nor a file of weights, nor "
            "the directory of a run"
        )
    if _is_directory(config.init_from):
        return _origin_of_run(config, _source(config.init_from))
    mean, std = pretrained.normalization(config.net)
    return Origin(stem="large", mean=mean, std=std, fingerprint=init_fingerprint(config.init_from))


def _is_directory(init_from: str) -> bool:
    return init_from != "keras" and os.path.isdir(init_from)


def _origin_of_run(config: Config, run: Run) -> Origin:
    flag = f"--init_from={config.init_from}"
    if run.config.net != config.net:
        raise ConfigError(
            f"{flag}: it is a run of {run.config.net}, not {config.net}; use --net={run.config.net}"
        )
    if config.stem not in (None, run.config.stem):
        raise ConfigError(
            f"{flag}: its net has the {run.config.stem} stem; use --stem={run.config.stem}, or "
            "leave it out"
        )
    return Origin(
        stem=run.config.stem,
        mean=run.data.mean,
        std=run.data.std,
        fingerprint=_checksum(_checkpoint(run)),
    )


def _source(path: str) -> Run:
    """The finished run in a directory; raises RunError or ConfigError."""
    try:
        run = Run.open(path)
        finished = run.result is not None
    except (RunError, ConfigError) as error:
        raise type(error)(f"--init_from: {error}") from error
    if not finished:
        raise RunError(
            f"--init_from={path}: this run is not finished, so its best weights may still change; "
            "finish it first"
        )
    return run


def _checkpoint(run: Run) -> str:
    """The path of the checkpoint that eval.py would score."""
    try:
        return run.checkpoint()
    except RunError as error:
        raise RunError(
            f"--init_from={run.path}: its checkpoint is missing; put it back, or start from "
            "another run"
        ) from error


def init_fingerprint(init_from: str | None) -> str | None:
    """A checksum of the file of weights, or of the checkpoint of the run; None if there is none.

    Raises:
        RunError: a file cannot be read.
    """
    if init_from in (None, "keras") or not os.path.exists(init_from):
        return None
    if not _is_directory(init_from):
        return _checksum(init_from)
    try:
        checkpoint = Run.open(init_from).checkpoint()
    except (RunError, ConfigError):
        return None
    return _checksum(checkpoint)


def _checksum(path: str | pathlib.Path) -> str:
    """Of the contents of a file, or of the files of a checkpoint."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*"))
    value = 0
    for file in files:
        try:
            with file.open("rb") as content:
                while chunk := content.read(1 << 24):
                    value = zlib.crc32(chunk, value)
        except OSError as error:
            raise RunError(f"--init_from: cannot read {file}: {error.strerror}") from error
    return f"{value:08x}"


def load_start(config: Config, info: DataInfo, *, allow_changes: bool = False) -> Start | None:
    """Reads the weights of `--init_from`; None without it.

    Args:
        config: of the run, with every default filled in.
        info: of the run.
        allow_changes: whether the net's operations may differ from those of the run to start from.

    Raises:
        ConfigError, RunError, pretrained.PretrainedError: they cannot be read.
    """
    if config.init_from is None:
        return None
    if _is_directory(config.init_from):
        run = _source(config.init_from)
        try:
            weights = transfer.read_weights(run.net(allow_changes=allow_changes))
        except RunError as error:
            raise RunError(f"--init_from: {error}") from error
        same_classes = run.data.class_names == info.class_names
        return lambda net: transfer.copy_weights(weights, net, same_classes=same_classes)
    channels = info.image_shape[-1]
    model = pretrained.load(config.net, config.init_from, channels=channels, stem=config.stem)
    return lambda net: pretrained.copy_weights(config.net, model, net)
