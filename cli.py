"""The command line: flags, messages for people, a quiet start. Nothing else here knows absl.

Synopsis:

    cli.run(main, cli.define_train_flags)
"""

import contextlib
import math
import os
import signal
import sys

from absl import app, flags, logging

EXIT_BAD_INPUT = 2
# A shell's convention for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
EXIT_SIGNAL = 128

# Flags that say where and how fast a run is made. They may change when it is resumed.
FREE_FLAGS = ("data_dir", "device", "keep_checkpoints", "num_gpus", "save_minutes")
# Of those, the ones that are no part of a run's name either.
UNNAMED_FLAGS = ("data_dir", "keep_checkpoints", "save_minutes")
# Flags that are no part of a run's configuration.
COMMAND_FLAGS = ("describe", "num_classes", "run_dir")


def fail(message: str) -> None:
    """Ends the program with one line on standard error."""
    lines = (line.strip() for line in message.splitlines())
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(filter(None, lines))}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def parse(argv: list[str], define_flags, values=flags.FLAGS) -> dict:
    """The flags in a command line, by name; ends the program if one is wrong.

    Args:
        argv: the command line, beginning with the program's name.
        define_flags: `define_train_flags` or `define_eval_flags`.
        values: absl's flags, which get the definitions.
    """
    names = define_flags(values)
    for name in names:  # So that --help lists them: absl lists those of the main module.
        values.register_key_flag_for_module(argv[0], values[name])
    try:
        rest = values(argv)
    except flags.Error as error:
        fail(f"{error}; --help lists the flags")
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; flags start with --")
    return {name: values[name].value for name in names}


def run(main, define_flags) -> None:
    """Calls `main` with the flags in the command line."""
    found = {}

    def parse_all(argv):
        found.update(parse(argv, define_flags))
        logging.set_verbosity(logging.ERROR)
        return argv

    def guarded(_):
        try:
            main(found)
        except KeyboardInterrupt:
            sys.exit(EXIT_SIGNAL + signal.SIGINT)

    app.run(guarded, flags_parser=parse_all)


@contextlib.contextmanager
def quiet_start():
    """Keeps what TensorFlow says on standard error while it is imported from the user."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


class _Define:
    """Defines flags, each with its bounds, and remembers their names."""

    def __init__(self, values: flags.FlagValues):
        self._values = values
        self.names = []

    def _add(self, kind, name, default, help_text, **kwargs):
        kind(name, default, help=help_text, flag_values=self._values, **kwargs)
        self.names.append(name)

    def _check(self, name, good, message):
        flags.register_validator(name, good, message=message, flag_values=self._values)

    def string(self, name, default, help_text):
        self._add(flags.DEFINE_string, name, default, help_text)

    def not_empty(self, name, message):
        self._check(name, lambda value: value != "", message)

    def boolean(self, name, default, help_text):
        self._add(flags.DEFINE_boolean, name, default, help_text)

    def integer(self, name, default, help_text, lowest=1, highest=None):
        self._add(
            flags.DEFINE_integer,
            name,
            default,
            help_text,
            lower_bound=lowest,
            upper_bound=highest,
        )

    def choice(self, name, default, help_text, values):
        self._add(flags.DEFINE_enum, name, default, help_text, enum_values=values)

    def number(self, name, default, help_text, *, above=None, below=None, up_to=None):
        """A finite number, at least 0 or above `above`, and below `below` or up to `up_to`."""
        self._add(flags.DEFINE_float, name, default, help_text)
        bounds = ["at least 0" if above is None else f"above {above:g}"]
        bounds += [f"below {below:g}"] if below is not None else []
        bounds += [f"at most {up_to:g}"] if up_to is not None else []

        def good(value):
            return value is None or (
                math.isfinite(value)
                and (value >= 0 if above is None else value > above)
                and (below is None or value < below)
                and (up_to is None or value <= up_to)
            )

        self._check(name, good, f"must be {' and '.join(bounds)}")

    def epochs(self, name, default, help_text):
        """A list of numbers above 0."""
        self._add(flags.DEFINE_list, name, default, help_text)

        def good(values):
            with contextlib.suppress(ValueError):
                return all(math.isfinite(float(v)) and float(v) > 0 for v in values)
            return False

        self._check(name, good, "must be numbers above 0 with commas between, as 15,25")


def _define_devices(define: _Define) -> None:
    """What it runs on."""
    define.integer(
        "num_gpus",
        1,
        "Number of GPUs, each with a replica of the net. Where no GPU is visible, as many logical "
        "CPU devices rehearse them.",
    )
    define.choice(
        "device",
        "auto",
        "gpu insists on GPUs, cpu refuses them, auto takes them if there are any.",
        ("auto", "cpu", "gpu"),
    )


def _define_net(define: _Define) -> None:
    """What is trained."""
    define.string("net", "inception10", "Net to train, a name from nets/__init__.py.")
    define.choice(
        "stem",
        None,
        "First layers of the net: large, the paper's, or small, for images of about 32x32. "
        "Default: small for images below 96 pixels.",
        ("small", "large"),
    )
    define.boolean(
        "auxiliary", True, "Train with the auxiliary heads of a net that has some, as inception_v1."
    )
    define.number(
        "batch_norm_momentum",
        None,
        "Share of the old in BatchNorm's moving statistics. Default: the net's own, but in a run "
        "too short for it 1 - 50 / steps of the run, or 0.9.",
        below=1,
    )
    define.string(
        "init_from",
        None,
        "Weights to start from: keras for those that Keras has (inception_v3, "
        "inception_resnet_v2, resnet50 to resnet152 and their _v2), or a file of such weights, "
        ".h5 or .weights.h5. Images are then normalized as the weights need it.",
    )
    define.not_empty("init_from", "must be keras or a file")
    define.boolean(
        "describe",
        False,
        "Print the net's stages with their shapes, parameters and FLOPs, for --image_size (default "
        "32) and --num_classes (default 10), and leave.",
    )
    define.integer(
        "num_classes",
        None,
        "Classes for --describe. In training they are the dataset's.",
        highest=1_000_000,
    )


def _define_data(define: _Define) -> None:
    """What the net is trained on."""
    define.string(
        "dataset",
        "cifar10",
        "Dataset: cifar10, cifar100, mnist, fashion_mnist, digits (needs no download) or folder "
        "(your own images in --data_dir).",
    )
    define.string(
        "data_dir",
        None,
        "Directory with the dataset's files. Default: where Keras keeps datasets, "
        "~/.keras/datasets.",
    )
    define.choice(
        "bad_images",
        "error",
        "What is done about image files of the dataset folder that cannot be decoded: error stops "
        "at the first that is met; skip decodes every file at the start, leaves the bad ones out "
        "and names them. Without effect on other datasets.",
        ("error", "skip"),
    )
    define.integer(
        "image_size",
        None,
        "Height and width in pixels that images are brought to. Default: the dataset's own; 64 "
        "for folder.",
        highest=4096,
    )
    define.number(
        "val_fraction",
        0.1,
        "Share of train held out for validation, on which the best checkpoint is chosen. 0 trains "
        "on all of train, and the best is the last.",
        below=1,
    )
    define.integer(
        "seed",
        0,
        "Seed of initial weights, order and augmentation, below 2^32.",
        lowest=0,
        highest=2**32 - 1,
    )


def _define_length(define: _Define) -> None:
    """How long, and in what portions."""
    define.number("epochs", 30.0, "Length of the run in epochs; fractions are allowed.", above=0)
    define.integer("batch_size", 128, "Examples in an update, over all replicas.")
    define.integer(
        "accumulation",
        1,
        "Parts that each replica's examples are cut into, one after the other, to save memory.",
    )


def _define_update(define: _Define) -> None:
    """How the weights move."""
    define.choice(
        "optimizer",
        "sgd",
        "Update rule; sgd has Nesterov momentum.",
        ("sgd", "adam", "adamw"),
    )
    define.number(
        "learning_rate",
        None,
        "Highest learning rate. Default: 0.2 for sgd, 0.001 for adam and adamw.",
        above=0,
    )
    define.number("momentum", 0.9, "Momentum of sgd, from 0 (none) to below 1.", below=1)
    define.choice(
        "schedule",
        "cosine",
        "Course of the learning rate after the warm-up: constant; step, times --step_factor after "
        "each of --step_epochs; cosine, to 0; one_cycle, in a straight line to 0.",
        ("constant", "step", "cosine", "one_cycle"),
    )
    define.number(
        "warmup_epochs",
        None,
        "Epochs in which the learning rate rises from 0. Default: 1, but at most a fifth of the "
        "run.",
    )
    define.epochs(
        "step_epochs", ["15", "25"], "Epochs after which --schedule=step lowers the rate."
    )
    define.number("step_factor", 0.1, "What --schedule=step multiplies the rate with.", up_to=1)
    define.number(
        "weight_decay",
        None,
        "Weight decay of kernels; BatchNorm and biases have none. Default: 0.0005 for sgd, 0 for "
        "adam, 0.05 for adamw, which decouples it.",
    )
    define.number(
        "label_smoothing",
        None,
        "Share of each label that is spread over all classes. Default: 0; 0.1 for inception_v3.",
        below=1,
    )
    define.number("clip_norm", 0.0, "Highest global norm of the gradients; 0 is off.")
    define.number(
        "ema_decay",
        0.0,
        "Decay per update of a moving average of weights and BatchNorm statistics, which is then "
        "what is evaluated; 0 is off, 0.999 is common.",
        below=1,
    )


def _define_augmentation(define: _Define) -> None:
    """What is done to the images."""
    define.integer(
        "crop_padding",
        None,
        "Pixels that the random crop may move an image by; 0 is off. Default: what suits the "
        "dataset.",
        lowest=0,
    )
    define.boolean("flip", None, "Mirror half of the images. Default: what suits the dataset.")
    define.integer("cutout", 0, "Side in pixels of a square that is blanked; 0 is off.", lowest=0)
    define.number("mixup", 0.0, "Alpha of mixup's Beta distribution; 0 is off, 0.2 is common.")
    define.number("cutmix", 0.0, "Alpha of cutmix's Beta distribution; 0 is off, 1 is common.")


def _define_arithmetic(define: _Define) -> None:
    """How precisely, and whether it is compiled."""
    define.choice(
        "precision",
        "float32",
        "Precision of the net's arithmetic; weights stay float32.",
        ("float32", "mixed_bfloat16", "mixed_float16"),
    )
    define.boolean(
        "jit",
        False,
        "Compile the forward and backward pass with XLA, which draws other numbers for dropout.",
    )


def _define_keeping(define: _Define) -> None:
    """What is kept, and how often."""
    define.string(
        "run_dir",
        None,
        "Directory of the run. Default: runs/ and a name that comes from the configuration, so "
        "that the same command goes on with its run.",
    )
    define.integer("keep_checkpoints", 3, "How many of the last checkpoints are kept.")
    define.number(
        "save_minutes",
        10.0,
        "Minutes between saves within an epoch; an epoch's end always saves.",
        above=0,
    )
    define.integer("log_steps", 50, "Steps between rows of training metrics.")
    define.integer("eval_epochs", 1, "Epochs between evaluations on the validation split.")


def define_train_flags(values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags of train.py and returns their names."""
    define = _Define(values)
    _define_net(define)
    _define_data(define)
    _define_length(define)
    _define_update(define)
    _define_augmentation(define)
    _define_devices(define)
    _define_arithmetic(define)
    _define_keeping(define)
    return define.names


def define_eval_flags(values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags of eval.py and returns their names."""
    define = _Define(values)
    define.string("run_dir", None, "Directory of the run to score. Required.")
    define.string(
        "checkpoint",
        None,
        "best, last, or a checkpoint's directory, prefix or file. Default: best, or last if the "
        "run keeps no best.",
    )
    define.choice("split", "test", "Split to score.", ("train", "val", "test"))
    define.string("dataset", None, "Another dataset with the same classes. Default: the run's.")
    define.string(
        "data_dir",
        None,
        "Directory with the dataset's files. Default: the run's, or for another dataset where "
        "Keras keeps datasets.",
    )
    define.string("json", None, "File to write the scores to, as JSON.")
    define.boolean(
        "follow",
        False,
        "Score each new checkpoint of a running training until it is finished, and chart the "
        "scores in TensorBoard.",
    )
    _define_devices(define)
    return define.names
