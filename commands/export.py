"""Exports the net of a saved run: what export.py does."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

import data
from commands import build
from commands.checks import normal_path
from commands.exported import (
    LABELS,
    ExportedModel,
    fitting,
    write_onnx,
    write_saved_model,
    write_tflite,
)
from commands.options import ExportOptions
from commands.output import write
from commands.run import Run
from commands.setting import ConfigError, convert
from commands.verification import Answers, check, image_batches, run_answers
from commands.weights_text import write_weights
from loops.distributed.devices import make_strategy
from loops.errors import SaveError, reason
from nets.fold import fold

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
    options.check()
    if options.out and options.format == "tflite" and not hasattr(tf, "lite"):
        raise ConfigError(f"--format=tflite: TensorFlow {tf.__version__} has no tf.lite")
    run = Run.open(options.run_dir)
    out = normal_path(options.out[0]) if options.out else None
    weights = options.weights_txt and normal_path(options.weights_txt)
    strategy, _ = make_strategy(1, "cpu")
    with strategy.scope():
        net = _float32_net(run, options)
    if weights is not None:
        with _written(weights) as temporary:
            count = write_weights(net, temporary)
        _say("weights", f"{weights}: {count} trainable variables")
    if out is None:
        return None
    return _export(run, net, out, options)


def _float32_net(run: Run, options: ExportOptions) -> tf.keras.layers.Layer:
    """The net of a run, which computes in float32 whatever the precision of the run is."""
    net = run.net(options.checkpoint, allow_changes=options.allow_changes)
    if run.config.precision != "float32":
        net = build.build_net(dataclasses.replace(run.config, precision="float32"), run.data)
        run.restore(net, run.checkpoint(options.checkpoint))
    # Auxiliary heads are not part of the answer.
    net.auxiliary = ()
    for name in run.config.freeze:  # Their weights are written like the others.
        net.stages[name].trainable = True
    return net


def _export(run, net, out, options) -> Answers | None:
    """Writes the model and checks it before it gets its name."""
    split = None if options.int8 else "test"
    dataset = None
    if options.verify or options.int8:
        dataset = run.dataset(options.data_dir, split=split)
    with _written(out) as temporary:
        expected = None
        if options.verify:
            images = temporary.with_name(f"{out.name}.images")
            fit = fitting(options.format == "saved_model")
            expected = run_answers(net, dataset, images, fit)
        folded = fold(net)
        model = ExportedModel(
            net,
            run.data,
            with_tensorflow=options.format == "saved_model",
            eval_crop=run.config.eval_crop,
        )
        if options.format == "saved_model":
            write_saved_model(model, temporary)
        elif options.format == "onnx":
            write_onnx(model, temporary)
        else:
            images = _calibration_images(dataset.splits["train"]) if options.int8 else None
            write_tflite(model, temporary, images)
        answers = None if expected is None else check(options, temporary, expected)
        size = _size(temporary)
    # Printed now, so that an output that cannot be written does not undo the export.
    for label, text in _description(run, options, folded).items():
        _say(label, text)
    if answers is not None:
        _say("checked", str(answers))
    _say("wrote", f"{out}, {size / 1e6:,.2f} MB")
    return answers


def _calibration_images(source: data.Source) -> list[np.ndarray]:
    """Some images from the whole of a split, uint8 [1, height, width, channels] each."""
    size = len(source.labels)
    numbers = np.linspace(0, size - 1, min(size, _CALIBRATION_IMAGES)).round()
    return list(image_batches(data.Subset(source, numbers), 1))


def _say(label: str, text: str) -> None:
    write(f"{label:<7}  {text}\n")


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
    crop = run.config.eval_crop
    seen = "" if crop == 1 else f"; of the middle, {crop:g} of each side is used"
    precision, trained = "8-bit integers" if options.int8 else "float32", run.config.precision
    if trained != "float32":
        precision += f" (trained in {trained})"
    unfinished = "" if run.result else "; the run is not finished"
    tta = ",".join(run.config.tta)
    alone = f"; of the image alone, without the variants of --tta={tta}" if tta else ""
    return {
        "from": run.checkpoint(options.checkpoint) + unfinished,
        "net": f"{run.config.net} in {precision}; BatchNorm of {folded} convolutions is folded",
        "input": f"images, uint8 [n, height, width, {channels}]; those that are not "
        f"{height}x{width} are {_SCALED[options.format]}{seen}",
        "output": f"probabilities, float32 [n, {len(run.data.class_names)}]{alone}",
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
