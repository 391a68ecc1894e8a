"""Exports the net of a saved run: what export.py does."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

import data
from commands import build
from commands.exported import (
    LABELS,
    ExportedModel,
    write_onnx,
    write_saved_model,
    write_tflite,
)
from commands.options import ExportOptions
from commands.run import Run
from commands.setting import ConfigError, convert
from commands.verification import Answers, check, image_batches, run_answers
from commands.weights_text import write_weights
from loops.distributed.devices import make_strategy
from loops.errors import SaveError, reason
from loops.records import run as run_files
from loops.records.terminal import Terminal
from nets.fold import fold

_SUFFIXES = {".tflite": "tflite", ".onnx": "onnx"}
_CALIBRATION_IMAGES = 256


def export(options: ExportOptions) -> Answers | None:
    """Exports the net of a run in one format, and writes its weights as text.

    Returns:
        The answers of the exported model; None without an export or with `verify=False`.

    Raises:
        ConfigError, data.DataError, RunError: something is missing or does not fit, a file exists
            already or cannot be written, or the exported model answers otherwise than the net.
    """
    options = convert(dataclasses.asdict(options), ExportOptions)
    if options.run_dir is None:
        raise ConfigError("--run_dir is required: the directory of the run to export")
    run = Run.open(options.run_dir)
    out, weights = _paths(options)
    strategy, _ = make_strategy(1, "cpu")
    with strategy.scope():
        net = _float32_net(run, options)
    terminal = Terminal()
    if weights is not None:
        with _written(weights) as temporary:
            count = write_weights(net, temporary)
        _say(terminal, "weights", f"{weights}: {count} trainable variables")
    if out is None:
        return None
    return _export(run, net, out, options, terminal)


def _paths(options: ExportOptions) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Where to write the model and the weights; None for what is not asked for.

    Raises:
        ConfigError: nothing is asked for, or what is cannot be done.
    """
    if len(options.out) > 1:
        raise ConfigError(f"one OUT is expected, not {len(options.out)}: {' '.join(options.out)}")
    if not options.out and options.weights_txt is None:
        raise ConfigError("OUT is required: where to write the model; or --weights_txt=FILE")
    if options.int8 and options.format != "tflite":
        raise ConfigError(f"--int8 is for --format=tflite, not --format={options.format}")
    out = _free_path(options.out[0], "OUT") if options.out else None
    weights = options.weights_txt and _free_path(options.weights_txt, "--weights_txt")
    if out is not None:
        if out == weights:
            raise ConfigError(f"OUT and --weights_txt are both {out}; use two names")
        format = _SUFFIXES.get(out.suffix, options.format)
        if format != options.format:
            raise ConfigError(f"{out.name} is a name for --format={format}, not {options.format}")
        _check_libraries(options)
    return out, weights


def _free_path(text: str, what: str) -> pathlib.Path:
    """A path at which nothing is, and nothing of a run is expected."""
    path = pathlib.Path(os.path.abspath(os.path.expanduser(text)))
    if os.path.lexists(path):
        raise ConfigError(f"{what}={text} exists already; use another name, or delete it")
    if not path.parent.is_dir():
        raise ConfigError(f"{what}={text}: there is no directory {path.parent}")
    real = path.parent.resolve() / path.name
    for parent in real.parents:
        own = real.relative_to(parent).parts[0]
        if (parent / run_files.CONFIG).is_file() and own in run_files.OWN:
            raise ConfigError(f"{what}={text}: {own} belongs to the run {parent}; use another name")
    return path


def _check_libraries(options: ExportOptions) -> None:
    if options.format == "tflite" and not hasattr(tf, "lite"):
        raise ConfigError(f"--format=tflite: TensorFlow {tf.__version__} has no tf.lite")
    if options.format == "onnx":
        needed = ("tf2onnx", "onnx", *(["onnxruntime"] if options.verify else []))
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(f"--format=onnx: pip install {' '.join(missing)}")


def _float32_net(run: Run, options: ExportOptions) -> tf.keras.layers.Layer:
    """The net of a run, which computes in float32 whatever the precision of the run is."""
    net = run.net(options.checkpoint, allow_changes=options.allow_changes)
    if run.config.precision != "float32":
        net = build.build_net(dataclasses.replace(run.config, precision="float32"), run.data)
        run.restore(net, run.checkpoint(options.checkpoint))
    # Auxiliary heads are not part of the answer.
    net.auxiliary = ()
    return net


def _export(run, net, out, options, terminal) -> Answers | None:
    """Writes the model and checks it before it gets its name."""
    split = None if options.int8 else "test"
    dataset = None
    if options.verify or options.int8:
        dataset = run.dataset(options.data_dir, split=split)
    with _written(out) as temporary:
        expected = None
        if options.verify:
            expected = run_answers(net, dataset, temporary.with_name(f"{out.name}.images"))
        folded = fold(net)
        model = ExportedModel(net, run.data, with_tensorflow=options.format == "saved_model")
        if options.format == "saved_model":
            write_saved_model(model, temporary)
        elif options.format == "onnx":
            write_onnx(model, temporary)
        else:
            images = _calibration_images(dataset.splits["train"]) if options.int8 else None
            write_tflite(model, temporary, images)
        for label, text in _description(run, options, folded).items():
            _say(terminal, label, text)
        answers = None
        if expected is not None:
            answers = check(options, temporary, expected)
            _say(terminal, "checked", str(answers))
        size = _size(temporary)
    _say(terminal, "wrote", f"{out}, {size / 1e6:,.2f} MB")
    return answers


def _calibration_images(source: data.Source) -> list[np.ndarray]:
    """Some images from the whole of a split, uint8 [1, height, width, channels] each."""
    size = len(source.labels)
    numbers = np.linspace(0, size - 1, min(size, _CALIBRATION_IMAGES)).round()
    return list(image_batches(data.Subset(source, numbers), 1))


def _say(terminal: Terminal, label: str, text: str) -> None:
    terminal.line(f"{label:<7}  {text}")


_SCALED = {
    "saved_model": "scaled with antialiasing to cover that, and cut to the middle",
    "tflite": "cut to the middle and scaled bilinearly, without antialiasing",
    "onnx": "cut to the middle and scaled bilinearly, without antialiasing",
}
_NAMES = {
    "saved_model": f"the output classes, and assets/{LABELS}",
    "tflite": f"{LABELS}, which unzip extracts from the file",
    "onnx": "names in metadata_props, as JSON",
}


def _description(run: Run, options: ExportOptions, folded: int) -> dict[str, str]:
    """What the model is, by label."""
    height, width, channels = run.data.image_shape
    precision, trained = "8-bit integers" if options.int8 else "float32", run.config.precision
    if trained != "float32":
        precision += f" (trained in {trained})"
    return {
        "net": f"{run.config.net} in {precision}; BatchNorm of {folded} convolutions is folded",
        "input": f"images, uint8 [n, height, width, {channels}]; those that are not "
        f"{height}x{width} are {_SCALED[options.format]}",
        "output": f"probabilities, float32 [n, {len(run.data.class_names)}]",
        "names": _NAMES[options.format],
    }


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, in a directory of its own, and renames it at the end.

    Raises:
        SaveError: it cannot be written, or something is at `path` by then.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name[:40]}.", dir=path.parent
        ) as directory:
            temporary = pathlib.Path(directory, path.name)
            yield temporary
            if os.path.lexists(path):
                raise SaveError(f"{path} exists by now; use another name, or delete it")
            temporary.rename(path)
    except (OSError, tf.errors.OpError) as error:
        raise SaveError(f"cannot write {path}: {reason(error)}") from error


def _size(path: pathlib.Path) -> int:
    """Bytes of a file, or of the files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
