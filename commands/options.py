"""The flags of each command.

They are declared as the settings of a run are, in `commands/config.py`.
"""

import dataclasses
from typing import Annotated, Literal

import msgspec

from commands import checks
from commands.config import TTA, Config, Tta
from commands.setting import LARGEST, ConfigError, Count, Seed, Text, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(Config):
    """The flags of train.py: the settings of a run, and options of the command."""

    run_dir: Text | None = setting(
        None,
        "Directory of the run. Default: runs/ and a name derived from the configuration, so that "
        "rerunning a command resumes its run.",
        path=True,
    )
    seeds: tuple[Seed, ...] = setting(
        (),
        "Seeds, such as 0,1,2: trains a run with each of them, one after the other, and compares "
        "them at the end. With --run_dir, the runs are its seed_0, seed_1, ...",
    )
    find_learning_rate: bool = setting(
        False,
        "Raise the learning rate exponentially from step to step, draw the loss against it, "
        "suggest a rate, and exit. No run is made.",
    )
    profile_steps: Text | None = setting(
        None,
        "Steps to profile, as FIRST:LAST, such as 100:110; shown by TensorBoard's profile plugin.",
    )
    verbosity: Annotated[int, msgspec.Meta(ge=0, le=2)] = setting(
        1,
        "What is printed: 0, the result alone; 1, also the net, the data and a line per epoch; 2, "
        "also a line per row of training metrics.",
    )
    allow_changes: bool = setting(
        False,
        "Resume although the net's operations or the versions of TensorFlow, Keras, NumPy or "
        "Python differ from those the run was started with.",
    )
    cluster: Literal["auto", "none", "tf_config", "slurm"] = setting(
        "auto",
        "Where the machines that train together are listed: tf_config, in TF_CONFIG; slurm, in the "
        "variables of srun. auto uses either if it is there; none trains alone.",
    )
    describe: bool = setting(
        False,
        "Print the net's stages with shapes, parameters and FLOPs, for --image_size (default 32) "
        "and --num_classes (default 10), and exit.",
    )
    num_classes: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = setting(
        None, "Number of classes for --describe. A run uses those of its dataset."
    )

    def check(self) -> None:
        """Raises ConfigError if options do not fit together."""
        if self.describe:  # Which uses few of them.
            return
        checks.check_settings(self)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds={','.join(map(str, self.seeds))}: a seed is given twice")
        if self.seeds and self.seed:
            raise ConfigError(f"--seed={self.seed} and --seeds exclude each other; drop one")
        if self.seeds and self.find_learning_rate:
            raise ConfigError("--find_learning_rate is for one seed; use --seed, not --seeds")
        if self.profile_steps is not None:
            checks.profiled_steps(self.profile_steps)

    @property
    def config(self) -> Config:
        """The settings alone."""
        return Config(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Config)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The flags of eval.py."""

    run_dir: Text | None = setting(None, "Directory of the run to score. Required.", path=True)
    checkpoint: Text | None = setting(
        None,
        "best, last, or the path of a checkpoint or of a directory of checkpoints. Default: best, "
        "or last if the run has no validation split.",
        path=True,
    )
    split: Literal["train", "val", "test"] = setting(
        "test",
        "Split to score: of the run's data, as in training; of another folder, its directory of "
        "that name, or val/ for test if there are train/ and val/ only, or else the whole tree.",
    )
    dataset: Text | None = setting(
        None, "Another dataset with the same classes. Default: the run's."
    )
    data_dir: Text | None = setting(
        None,
        "Directory of the dataset's files. Default: the run's; for another dataset "
        "~/.keras/datasets.",
        path=True,
    )
    json: Text | None = setting(None, "File to write the scores to, as JSON.", path=True)
    pictures: Text | None = setting(
        None,
        "Directory to draw pictures in: curves, confusion matrix, worst mistakes, calibration, "
        "augmented images and the filters of the first layer.",
        path=True,
    )
    per_class: bool = setting(
        False,
        "Print the accuracy of every class. Otherwise, of more than 20, the ten best and worst.",
    )
    follow: bool = setting(
        False,
        "Score each new checkpoint of a run while it trains, and chart the scores in TensorBoard.",
    )
    tta: Tta | None = setting(None, f"{TTA} none scores the image alone. Default: as in the run.")
    allow_changes: bool = setting(
        False, "Score although the net's operations have changed since training."
    )
    num_gpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = setting(
        1, "GPUs to use. Without a visible GPU, as many logical CPU devices take their place."
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto", "gpu requires GPUs, cpu ignores them, auto uses them if any are visible."
    )

    def check(self) -> None:
        """Raises ConfigError or RunError if options are missing or do not fit."""
        checks.check_run_dir(self.run_dir, "the directory of the run to score")
        for name in ("checkpoint", "pictures"):
            if self.follow and getattr(self, name):
                raise ConfigError(f"--follow scores each new checkpoint; leave out --{name}")
        checks.output_file("json", self.json)
        checks.output_directory("pictures", self.pictures)


_CHECKPOINT = (
    "best, last, or the path of a checkpoint or of a directory of checkpoints. Default: best, or "
    "last if the run has no validation split."
)
_ALLOW_CHANGES = "Use the net although its operations have changed since training."
_DEVICE = "gpu requires a GPU, cpu ignores GPUs, auto uses one if it is visible."


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The flags of predict.py."""

    images: tuple[Text, ...] = setting(
        (),
        "Image files, directories, or patterns such as 'photos/*.png'; - reads paths from standard "
        "input, one per line. A path that is given twice is classified twice.",
        positional=True,
    )
    run_dir: Text | None = setting(None, "Directory of the run. Required.", path=True)
    checkpoint: Text | None = setting(None, _CHECKPOINT, path=True)
    top: Count = setting(3, "Number of classes to print for each image, the most probable first.")
    format: Literal["text", "csv", "json"] = setting(
        "text",
        "Format of standard output: text, aligned columns; csv, a header and a row per image with "
        "path, class, probability, class_2, probability_2, ...; json, an object per line (JSON "
        "Lines). Images that cannot be read are named on standard error.",
    )
    tta: Tta | None = setting(None, f"{TTA} none scores the image alone. Default: as in the run.")
    grad_cam: Text | None = setting(
        None,
        "Directory to write images to, 512x512 pixels, on which the regions that speak for the "
        "predicted class are marked (Grad-CAM, Selvaraju et al. 2016).",
        path=True,
    )
    allow_changes: bool = setting(False, _ALLOW_CHANGES)
    device: Literal["auto", "cpu", "gpu"] = setting("auto", _DEVICE)

    def check(self) -> None:
        """Raises ConfigError or RunError if options are missing or do not fit."""
        checks.check_run_dir(self.run_dir, "the directory of the run to predict with")
        if not self.images:
            raise ConfigError("name image files, directories or patterns, or - for standard input")
        checks.check_overlays(self.grad_cam, self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The flags of export.py."""

    out: tuple[Text, ...] = setting(
        (), "File to write; a directory for --format=saved_model.", positional=True
    )
    run_dir: Text | None = setting(None, "Directory of the run. Required.", path=True)
    checkpoint: Text | None = setting(None, _CHECKPOINT, path=True)
    format: Literal["saved_model", "tflite", "onnx"] = setting(
        "saved_model",
        "saved_model, for TensorFlow; tflite, for LiteRT on phones and small devices; onnx, which "
        "needs pip install tf2onnx onnx onnxruntime. All compute in float32, unless --int8.",
    )
    int8: bool = setting(
        False,
        "Quantize weights and activations to 8 bits, calibrated on training images; for "
        "--format=tflite. The accuracy is printed beside that of the float model.",
    )
    weights_txt: Text | None = setting(
        None,
        "File to write the name, shape and values of every trainable variable to, as text.",
        path=True,
    )
    verify: bool = setting(
        True,
        "Load the exported model in a process without this project's code, and compare its answers "
        "on the test split with those of the run.",
    )
    data_dir: Text | None = setting(
        None, "Directory of the dataset's files. Default: the run's.", path=True
    )
    allow_changes: bool = setting(False, _ALLOW_CHANGES)

    def check(self) -> None:
        """Raises ConfigError or RunError if options are missing or do not fit."""
        checks.check_run_dir(self.run_dir, "the directory of the run to export")
        checks.check_export(self.out, self.weights_txt, self.format, self.int8)
        if self.out and self.format == "onnx":
            checks.check_onnx(self.verify)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The flags of compare.py."""

    runs: tuple[Text, ...] = setting(
        (),
        "Directories of runs, or directories that are searched for runs. Runs that differ in their "
        "seed alone form a group. The others are compared with the group of the first run.",
        positional=True,
    )
    metric: Text = setting(
        "top_1_accuracy",
        "Figure to compare: loss or a name from the table in loops/metrics.py. Two single runs are "
        "compared example by example, by their loss or their top-1 accuracy.",
    )
    format: Literal["text", "markdown", "csv", "json", "results"] = setting(
        "text",
        "Format of standard output: text or markdown, a row per group and sentences; csv, a row "
        "per run; json, everything; results, a page in Markdown with a row per recipe, made of "
        "records in RECIPE/seed_SEED (see recipes/rerun.py), of which it shows the top-1 accuracy.",
    )
    chart: Text | None = setting(
        None,
        "PNG file to draw the curves of training and validation in, those of several seeds as a "
        "band.",
        path=True,
    )
    chart_error: bool = setting(
        False, "In --chart, draw the error, which is 100% minus the accuracy."
    )
    examples: Text | None = setting(
        None,
        "PNG file to draw the test images in that only one of two runs classifies correctly.",
        path=True,
    )
    data_dir: Text | None = setting(
        None, "Directory of the dataset's files, for --examples. Default: the run's.", path=True
    )
    confidence: Annotated[float, msgspec.Meta(gt=0, lt=1)] = setting(
        0.95, "Confidence level of the intervals."
    )

    def check(self) -> None:
        """Raises ConfigError or RunError if options are missing or do not fit."""
        for flag in ("chart", "examples"):
            checks.png_file(flag, getattr(self, flag))
        checks.check_differ(chart=self.chart, examples=self.examples)
        if self.format == "results" and self.metric != "top_1_accuracy":
            raise ConfigError("--format=results shows the top-1 accuracy; drop --metric")
        if self.format == "results" and self.confidence != 0.95:
            raise ConfigError("--format=results has no intervals; drop --confidence")
        if self.chart_error and not self.chart:
            raise ConfigError("--chart_error needs --chart, the name of the picture")
        checks.check_runs(self.runs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """The flags of replay.py."""

    run_dir: Text | None = setting(None, "Directory of the run. Required.", path=True)
    step: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)] | None = setting(
        None, "Step to show: the update after which the global step is this number. Required."
    )
    picture: Text | None = setting(
        None,
        "PNG file to draw the batch in. Default: pictures/step-<step>.png in the run directory.",
        path=True,
    )
    json: Text | None = setting(None, "File to write the figures to, as JSON.", path=True)
    data_dir: Text | None = setting(
        None, "Directory of the dataset's files. Default: the run's.", path=True
    )
    allow_changes: bool = setting(False, _ALLOW_CHANGES)
    num_gpus: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = setting(
        None, "GPUs to use. Default: as many as the run."
    )
    device: Literal["auto", "cpu", "gpu"] | None = setting(
        None, "gpu, cpu or auto, as for train.py. Default: the run's."
    )

    def check(self) -> None:
        """Raises ConfigError or RunError if options are missing or do not fit."""
        checks.check_run_dir(self.run_dir)
        if self.step is None:
            raise ConfigError("--step is required: a global step, from 1, such as a message names "
                              "it")  # fmt: skip
        checks.output_file("picture", self.picture)
        checks.output_file("json", self.json)
        checks.check_differ(picture=self.picture, json=self.json)
