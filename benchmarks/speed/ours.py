"""What the comparison measures of this project."""

import contextlib
import itertools
import pathlib
import statistics
import time

import numpy as np
import tensorflow as tf

import data
from benchmarks.gpu_measure import prepared_step
from benchmarks.speed import examples
from benchmarks.speed.job import CLASSES, LEARNING_RATE, MEAN, PADDING, STD, Job
from benchmarks.speed.worker import Channel, Meter
from commands import build
from commands.config import Config
from commands.options import TrainOptions
from commands.train import train as train_command
from data.source import ArraySource
from loops import hooks
from loops.distributed.workers import Workers
from loops.evaluator import Evaluator
from loops.hook import Hook
from loops.inputs import iterate
from loops.stopwatch import Stopwatch
from loops.variables import named_variables
from nets.fold import fold
from nets.table import trace


def _settings(job: Job, **more) -> dict:
    """Flags of train.py; what is not named keeps its default."""
    return {
        "net": job.net,
        "dataset": job.dataset,
        "data_dir": job.data_dir,
        "image_size": job.image_size if job.dataset == "folder" else None,
        "batch_size": job.batch_size,
        "precision": job.precision,
        "num_gpus": job.replicas,
        "learning_rate": LEARNING_RATE,
        "auxiliary": False,
        "epochs": 10_000.0,
        **more,
    }


def _made_up(job: Job) -> data.Dataset:
    """The examples that all contestants train on, as a dataset."""
    images, labels = examples.read(job.directory)
    test = ArraySource(images[: examples.TEST_EXAMPLES], labels[: examples.TEST_EXAMPLES])
    return data.Dataset(
        name="made up",
        class_names=[str(i) for i in range(CLASSES)],
        splits={"train": ArraySource(images, labels), "test": test},
        mean=MEAN,
        std=STD,
        augment=f"crop:{PADDING},flip",
    )


class Turns(Hook):
    """Divides training into windows, which end at a call of the device loop.

    Evaluations and saves at the end of an epoch are left out of windows. Saves are timed; the first
    one of a process, which takes several times as long as the others, counts only without others.

    Args:
        meter: measures them.
    """

    def __init__(self, meter: Meter):
        self._meter = meter
        self._save_began: float | None = None
        self._saves: list[float] = []
        self._waiting = np.nan

    def _saved(self) -> None:
        if self._save_began is not None:
            self._saves.append(time.monotonic() - self._save_began)
            self._meter.facts["save_seconds"] = statistics.median(self._saves[1:] or self._saves)
            self._save_began = None

    def on_start(self, trainer) -> None:
        plan = trainer.plan
        self._meter.facts["epoch_images"] = plan.total_steps * plan.global_batch_size / plan.epochs

    def on_save(self, trainer) -> None:
        self._saved()
        self._save_began = time.monotonic()

    def on_log(self, trainer, row) -> None:
        self._waiting = trainer.timings.get("waiting_for_data", np.nan)
        if trainer.plan.is_epoch_end(trainer.step):
            self._meter.pause()

    def on_progress(self, trainer) -> None:
        self._saved()
        # Of the steps since the last row, or before it.
        waiting = trainer.timings.get("waiting_for_data", self._waiting)
        self._meter.at(trainer.step, waiting)

    def on_epoch(self, trainer) -> None:
        self._saved()
        self._meter.resume()


def train(job: Job, channel: Channel) -> None:
    """What train.py does, with its pipeline and all that it writes."""
    meter = Meter(channel, job.started, job.batch_size)
    data.DATASETS["made_up"] = lambda directory: _made_up(job)
    hooks.HOOKS["turns"] = lambda: Turns(meter)
    run_dir = pathlib.Path(job.directory, f"run_{time.monotonic_ns()}")
    train_command(TrainOptions(**_settings(job, hooks=("turns",), run_dir=str(run_dir))))


def _prepared(job: Job):
    """The examples of all contestants, and their pipeline, state and `TrainStep`."""
    config = Config(**_settings(job, dataset="cifar10"))  # Any name.
    dataset = _made_up(job)
    return dataset, *prepared_step(config, dataset)


def step(job: Job, channel: Channel) -> None:
    """Updates from one batch in memory: no pipeline, and nothing is written."""
    _, pipeline, state, update = _prepared(job)
    batch = pipeline.batches(0).take(job.replicas).cache().repeat()
    iterator = iterate(update.strategy, batch)
    meter, stopwatch = Meter(channel, job.started, job.batch_size), Stopwatch(job.batch_size)
    for call in itertools.count():
        steps, began = stopwatch.steps_in(1.0), time.monotonic()  # As the trainer makes them.
        update.run(iterator, tf.constant(steps))
        if call:  # The first traces.
            stopwatch.add_steps(steps, time.monotonic() - began)
        meter.at(state.step)


def pipeline(job: Job, channel: Channel) -> None:
    """Training batches that nobody uses."""
    images, labels = examples.read(job.directory)
    made = data.TrainPipeline(
        ArraySource(images, labels),
        global_batch_size=job.batch_size,
        seed=0,
        augmentations=data.parse_augment(f"crop:{PADDING},flip"),
        mean=MEAN,
        std=STD,
        num_classes=CLASSES,
    )
    meter = Meter(channel, job.started, job.batch_size)
    for steps, _ in enumerate(made.batches(0), start=1):
        meter.at(steps)


def evaluate(job: Job, channel: Channel) -> None:
    """What the trainer does on its validation split; the variant "folded" folds BatchNorm."""
    dataset, _, state, update = _prepared(job)
    config = build.resolve(Config(**_settings(job, dataset="cifar10")), dataset)
    split = build.eval_pipeline(
        config, build.data_info(dataset), dataset.splits["test"], Workers(update.strategy)
    )
    if job.variant == "folded":
        fold(state.net)
    evaluator = Evaluator(update.strategy, state.net, prepare=split.prepare)
    meter = Meter(channel, job.started, split.size / split.num_batches)
    batches = itertools.count(1)
    while True:
        evaluator.scores(split, after_batch=lambda: meter.at(next(batches)))


def check(job: Job, channel: Channel) -> None:
    """Writes weights, and what the net makes of them, for the other frameworks.

    `weights.npz` has the arrays by `Conv` (see `nets.py`): `<path>/kernel`, [height, width, inputs,
    outputs], `<path>/gamma`, `beta`, `moving_mean` and `moving_variance`.
    """
    _, pipeline, state, update = _prepared(job)
    net, generator = state.net, np.random.default_rng(0)
    with contextlib.suppress(AttributeError):
        net.head.dropout.rate = 0.0  # Other frameworks draw other numbers.
    weights = {}
    for path, variable in named_variables(net).items():
        name = path.rpartition("/")[2]
        if name in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif name != "kernel":
            variable.assign(generator.normal(0, 0.2, variable.shape))
        place = path.replace("/conv/conv/kernel", "/kernel").replace("/batch_norm/", "/")
        weights[place] = variable.numpy()
    images, labels = next(iter(pipeline.batches(0)))
    found = update.inspect((images, labels))
    evaluated = net(images, training=False).numpy()
    multiply_adds = sum(row.flops for row in trace(net, images.shape[1:]).rows)
    fold(net)
    directory = pathlib.Path(job.directory)
    np.savez(directory / "weights.npz", **weights)
    np.savez(directory / "batch.npz", images=images.numpy(), labels=labels.numpy())
    np.savez(
        directory / "ours.npz",
        evaluated=evaluated,
        folded=net(images, training=False).numpy(),
        trained=found.logits.numpy(),
        loss=found.loss.numpy(),
        gradient_norm=found.norm.numpy(),
        parameters=sum(v.numpy().size for v in net.trainable_variables),
        multiply_adds=multiply_adds,
    )
    channel.send(done=True)


def export(job: Job, channel: Channel) -> None:
    """Writes the train split of a dataset as the examples of all contestants."""
    source = data.load(job.dataset, data_dir=job.data_dir).splits["train"]
    images = source.fetch(tf.range(len(source.labels), dtype=tf.int64)).numpy()
    examples.save(pathlib.Path(job.directory), images, source.labels)
    channel.send(done=True)


def roof(job: Job, channel: Channel) -> None:
    """A matrix product in a precision; an image is a multiplication and an addition, in 1e9."""
    dtype = tf.float32 if job.precision == "float32" else tf.bfloat16
    size = job.batch_size
    one, other = (tf.cast(tf.random.normal((size, size)), dtype) for _ in range(2))
    product = tf.function(lambda: tf.matmul(one, other)[0, 0])
    meter = Meter(channel, job.started, 2e-9 * size**3)
    for steps in itertools.count(1):
        product().numpy()
        meter.at(steps)


TASKS = {
    "train": train,
    "step": step,
    "pipeline": pipeline,
    "evaluate": evaluate,
    "check": check,
    "export": export,
    "roof": roof,
}
