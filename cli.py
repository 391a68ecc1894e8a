"""The command line: flags, messages for people, a quiet start. Nothing else here knows absl.

Synopsis:

    cli.run(main, cli.define_train_flags)
"""

import contextlib
import os
import sys

from absl import app, flags, logging

EXIT_BAD_INPUT = 2
# A shell's convention for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
EXIT_SIGNAL = 128

# Flags that say where and how fast a run is made. They may change when it is resumed.
FREE_FLAGS = ("data_dir", "device", "jit", "keep_checkpoints", "num_gpus", "save_minutes")
# Of those, the ones that are no part of a run's name either.
UNNAMED_FLAGS = ("data_dir", "keep_checkpoints", "save_minutes")


def fail(message: str) -> None:
    """Ends the program with one line on standard error."""
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def run(main, define_flags) -> None:
    """Parses the flags and calls `main(values)` with a dictionary of them."""

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            fail(f"{error}; --help lists the flags")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; flags start with --")
        logging.set_verbosity(logging.ERROR)
        return rest

    names = define_flags()
    for name in names:
        flags.declare_key_flag(name)
    app.run(lambda _: main({n: flags.FLAGS[n].value for n in names}), flags_parser=parse)


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


class _Flags:
    """Defines flags and remembers their names."""

    def __init__(self):
        self.names = []

    def _add(self, define, name, default, help_text, **kwargs):
        define(name, default, help_text, **kwargs)
        self.names.append(name)

    def string(self, name, default, help_text):
        self._add(flags.DEFINE_string, name, default, help_text)

    def boolean(self, name, default, help_text):
        self._add(flags.DEFINE_boolean, name, default, help_text)

    def integer(self, name, default, help_text, lowest=1):
        self._add(flags.DEFINE_integer, name, default, help_text, lower_bound=lowest)

    def number(
        self, name, default, help_text, lowest=0.0, highest=None, *, above=False, below=False
    ):
        """A float in [lowest, highest]; `above` and `below` leave out the bounds."""
        self._add(flags.DEFINE_float, name, default, help_text)
        low = f"above {lowest:g}" if above else f"at least {lowest:g}"
        high = "" if highest is None else f" and {'below' if below else 'at most'} {highest:g}"

        def good(value):
            if value is None:
                return True
            # Written so that a NaN is refused.
            lower = value > lowest if above else value >= lowest
            upper = value < float("inf") if highest is None else (
                value < highest if below else value <= highest
            )  # fmt: skip
            return lower and upper

        flags.register_validator(name, good, message=f"must be {low}{high}")

    def choice(self, name, default, values, help_text):
        self._add(
            lambda *args, **kwargs: flags.DEFINE_enum(args[0], args[1], values, args[2]),
            name, default, help_text,
        )  # fmt: skip

    def numbers(self, name, default, help_text):
        self._add(flags.DEFINE_list, name, default, help_text)

        def good(values):
            with contextlib.suppress(ValueError):
                return all(float(v) > 0 for v in values)
            return False

        flags.register_validator(name, good, message="must be numbers above 0, as 30,60,80")


def _define_devices(define: _Flags) -> None:
    define.integer("num_gpus", 1, "Number of GPUs, each with a replica of the net. Where no GPU is "
                   "visible, as many logical CPU devices rehearse them.")  # fmt: skip
    define.choice("device", "auto", ("auto", "cpu", "gpu"), "gpu insists on GPUs, cpu refuses them, "
                  "auto takes them if there are any.")  # fmt: skip


def define_train_flags() -> list[str]:
    """Defines the flags of train.py and returns their names."""
    define = _Flags()
    # What.
    define.string("net", "inception10", "Net to train, a name from nets/__init__.py.")
    define.string(
        "dataset",
        "cifar10",
        "Dataset: cifar10, cifar100, mnist, fashion_mnist, digits "
        "(needs no download) or folder (your own images in --data_dir).",
    )
    define.string(
        "data_dir",
        None,
        "Directory with the dataset's files. Default: where Keras keeps "
        "datasets, ~/.keras/datasets.",
    )
    define.integer(
        "image_size",
        None,
        "Height and width in pixels that images are brought to. "
        "Default: the dataset's own; 64 for folder.",
    )
    define.number(
        "val_fraction",
        0.1,
        "Share of train held out for validation, on which the best "
        "checkpoint is chosen. 0 trains on all of train, and the best is the last.",
        highest=1,
        below=True,
    )
    define.integer("seed", 0, "Seed of initial weights, order, and augmentation.", lowest=0)
    # How long.
    define.number("epochs", 30.0, "Length of the run in epochs; a fraction is allowed.", above=True)
    define.integer("batch_size", 128, "Examples in an update, over all replicas.")
    define.integer(
        "accumulation",
        1,
        "Parts that each replica's examples are cut into and run one "
        "after the other, to save memory.",
    )
    # How.
    define.choice(
        "optimizer", "sgd", ("sgd", "adam", "adamw"), "Update rule; sgd has Nesterov momentum."
    )
    define.number(
        "learning_rate",
        None,
        "Highest learning rate. Default: 0.1 for sgd, 0.001 for adam and adamw.",
        above=True,
    )
    define.number(
        "momentum", 0.9, "Momentum of sgd, from 0 (none) to below 1.", highest=1, below=True
    )
    define.choice(
        "schedule",
        "cosine",
        ("constant", "step", "cosine", "one_cycle"),
        "Course of the "
        "learning rate after the warm-up: constant; step, times --step_factor after each "
        "of --step_epochs; cosine, to 0; one_cycle, in a straight line to 0.",
    )
    define.number(
        "warmup_epochs",
        None,
        "Epochs in which the learning rate rises from 0. Default: "
        "1, but at most a fifth of the run.",
    )
    define.numbers(
        "step_epochs", ["15", "25"], "Epochs after which --schedule=step lowers the rate."
    )
    define.number("step_factor", 0.1, "What --schedule=step multiplies the rate with.", highest=1)
    define.number(
        "weight_decay",
        None,
        "Weight decay of kernels; BatchNorm and biases have none. "
        "Default: 0.0005 for sgd, 0 for adam, 0.05 for adamw, which decouples it.",
    )
    define.number(
        "label_smoothing",
        0.0,
        "Share of each label spread over all classes, from 0 to below 1.",
        highest=1,
        below=True,
    )
    define.number("clip_norm", 0.0, "Highest global norm of the gradients; 0 is off.")
    define.number(
        "ema_decay",
        0.0,
        "Decay per update of a moving average of weights and BatchNorm "
        "statistics, which is then what is evaluated; 0 is off, 0.999 is common.",
        highest=1,
        below=True,
    )
    # Augmentation.
    define.integer(
        "crop_padding",
        None,
        "Pixels that the random crop may move an image by; 0 is "
        "off. Default: what suits the dataset.",
        lowest=0,
    )
    define.boolean("flip", None, "Mirror half of the images. Default: what suits the dataset.")
    define.integer("cutout", 0, "Side in pixels of a square that is blanked; 0 is off.", lowest=0)
    define.number("mixup", 0.0, "Alpha of mixup's Beta distribution; 0 is off, 0.2 is common.")
    define.number("cutmix", 0.0, "Alpha of cutmix's Beta distribution; 0 is off, 1 is common.")
    # Where and how fast.
    define.choice(
        "precision",
        "float32",
        ("float32", "mixed_bfloat16", "mixed_float16"),
        "Precision of the net's arithmetic; weights stay float32.",
    )
    define.boolean("jit", False, "Compile the forward and backward pass with XLA.")
    _define_devices(define)
    # What is kept.
    define.string(
        "run_dir",
        None,
        "Directory of the run. Default: runs/ and a name that comes from "
        "the configuration, so that the same command goes on with its run.",
    )
    define.integer("keep_checkpoints", 3, "How many of the last checkpoints are kept.")
    define.number(
        "save_minutes",
        10.0,
        "Minutes between saves within an epoch; its end always saves.",
        above=True,
    )
    define.integer("log_steps", 50, "Steps between rows of training metrics.")
    define.integer("eval_epochs", 1, "Epochs between evaluations on the validation split.")
    return define.names


def define_eval_flags() -> list[str]:
    """Defines the flags of eval.py and returns their names."""
    define = _Flags()
    define.string("run_dir", None, "Directory of the run to score. Required.")
    define.string(
        "checkpoint",
        None,
        "best, last, or a checkpoint's directory, prefix or file. "
        "Default: best, or last if the run keeps no best.",
    )
    define.choice("split", "test", ("train", "val", "test"), "Split to score.")
    define.string("dataset", None, "Another dataset with the same classes. Default: the run's.")
    define.string(
        "data_dir",
        None,
        "Directory with the dataset's files. Default: the run's, or for "
        "another dataset where Keras keeps datasets.",
    )
    define.string("json", None, "File to write the scores to, as JSON.")
    define.boolean(
        "follow",
        False,
        "Score each new checkpoint of a running training, until it is "
        "finished, and chart the scores in TensorBoard.",
    )
    _define_devices(define)
    return define.names
