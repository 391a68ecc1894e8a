"""The flags of train.py and eval.py, by what they are about."""

from absl import flags

from cli.kinds import MOST_EPOCHS, MOST_PIXELS, Define

# Flags that say where and how fast a run is made. They may change when it is resumed.
FREE_FLAGS = (
    "data_dir", "device", "keep_checkpoints", "num_gpus", "on_nan", "on_save_error", "save_minutes",
)  # fmt: skip
# Of those, the ones that are no part of a run's name either.
UNNAMED_FLAGS = ("data_dir", "keep_checkpoints", "on_nan", "on_save_error", "save_minutes")
# Flags that are no part of a run's configuration.
COMMAND_FLAGS = ("cluster", "describe", "num_classes", "run_dir")


def _define_devices(define: Define) -> None:
    """What it runs on."""
    define.integer(
        "num_gpus",
        1,
        "Number of GPUs on each machine, each with a replica of the net. Where no GPU is visible, "
        "as many logical CPU devices rehearse them.",
        highest=64,
    )
    define.choice(
        "device",
        "auto",
        "gpu insists on GPUs, cpu refuses them, auto takes them if there are any.",
        ("auto", "cpu", "gpu"),
    )


def _define_cluster(define: Define) -> None:
    """Who else takes part."""
    define.choice(
        "cluster",
        "auto",
        "Where the machines that train together are named: tf_config, in TF_CONFIG; slurm, in the "
        "variables of srun. auto takes either if it is there; none trains alone.",
        ("auto", "none", "tf_config", "slurm"),
    )


def _define_net(define: Define) -> None:
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
    define.boolean(
        "sync_batch_norm",
        False,
        "Normalize with the statistics of all replicas' examples, so that any number of replicas "
        "makes the updates of one. Costs an exchange for each BatchNorm.",
    )
    define.path(
        "init_from",
        None,
        "Weights to start from: keras for those that Keras has (inception_v3, "
        "inception_resnet_v2, resnet50 to resnet152 and their _v2), or a file of such weights, "
        ".h5 or .weights.h5. Images are then normalized as the weights need it.",
        what="keras or a file",
    )
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


def _define_data(define: Define) -> None:
    """What the net is trained on."""
    define.string(
        "dataset",
        "cifar10",
        "Dataset: cifar10, cifar100, mnist, fashion_mnist, digits (needs no download) or folder "
        "(your own images in --data_dir).",
    )
    define.path(
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
        highest=MOST_PIXELS,
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


def _define_length(define: Define) -> None:
    """How long, and in what portions."""
    define.number(
        "epochs",
        30.0,
        "Length of the run in epochs; fractions are allowed.",
        above=0,
        up_to=MOST_EPOCHS,
    )
    define.integer(
        "batch_size", 128, "Examples in an update, over all replicas.", highest=1_000_000
    )
    define.integer(
        "accumulation",
        1,
        "Parts that each replica's examples are cut into, one after the other, to save memory.",
    )


def _define_update(define: Define) -> None:
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
        up_to=MOST_EPOCHS,
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


def _define_augmentation(define: Define) -> None:
    """What is done to the images."""
    define.integer(
        "crop_padding",
        None,
        "Pixels that the random crop may move an image by; 0 is off. Default: what suits the "
        "dataset.",
        lowest=0,
        highest=MOST_PIXELS,
    )
    define.boolean("flip", None, "Mirror half of the images. Default: what suits the dataset.")
    define.integer(
        "cutout",
        0,
        "Side in pixels of a square that is blanked; 0 is off.",
        lowest=0,
        highest=MOST_PIXELS,
    )
    define.number("mixup", 0.0, "Alpha of mixup's Beta distribution; 0 is off, 0.2 is common.")
    define.number("cutmix", 0.0, "Alpha of cutmix's Beta distribution; 0 is off, 1 is common.")


def _define_arithmetic(define: Define) -> None:
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
    define.boolean(
        "deterministic",
        False,
        "Use only kernels that give the same bits each time, so that equal commands on equal "
        "machines end with equal weights. Slower, above all on GPUs.",
    )


def _define_faults(define: Define) -> None:
    """What to do where something goes wrong."""
    define.choice(
        "on_nan",
        "stop",
        "Where a loss or gradient is not finite: stop; skip the update, and count it; or restore "
        "the last checkpoint and leave out the batches from there on, three times at most.",
        ("stop", "skip", "restore"),
    )
    define.choice(
        "on_save_error",
        "stop",
        "Where a checkpoint or a row cannot be written: stop, or continue and try again at the "
        "next occasion.",
        ("stop", "continue"),
    )


def _define_keeping(define: Define) -> None:
    """What is kept, and how often."""
    define.path(
        "run_dir",
        None,
        "Directory of the run. Default: runs/ and a name that comes from the configuration, so "
        "that the same command goes on with its run.",
    )
    define.integer(
        "keep_checkpoints",
        3,
        "How many of the last checkpoints are kept, at least 2: one is left if the newest is "
        "damaged.",
        lowest=2,
    )
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
    define = Define(values)
    _define_net(define)
    _define_data(define)
    _define_length(define)
    _define_update(define)
    _define_augmentation(define)
    _define_devices(define)
    _define_cluster(define)
    _define_arithmetic(define)
    _define_keeping(define)
    _define_faults(define)
    return define.names


def define_eval_flags(values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags of eval.py and returns their names."""
    define = Define(values)
    define.path("run_dir", None, "Directory of the run to score. Required.")
    define.path(
        "checkpoint",
        None,
        "best, last, or a checkpoint's directory, prefix or file. Default: best, or last if the "
        "run keeps no best.",
    )
    define.choice("split", "test", "Split to score.", ("train", "val", "test"))
    define.string("dataset", None, "Another dataset with the same classes. Default: the run's.")
    define.path(
        "data_dir",
        None,
        "Directory with the dataset's files. Default: the run's, or for another dataset where "
        "Keras keeps datasets.",
    )
    define.path("json", None, "File to write the scores to, as JSON.")
    define.boolean(
        "follow",
        False,
        "Score each new checkpoint of a running training until it is finished, and chart the "
        "scores in TensorBoard.",
    )
    _define_devices(define)
    return define.names
