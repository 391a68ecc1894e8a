"""The handle on a saved run.

Synopsis:

run = Run.open("runs/inception10-digits-0123ab")
run.config.learning_rate, run.metrics[-1], run.result
logits = run.net(checkpoint="best")(images, training=False)
"""

import dataclasses
import os
import pathlib

from commands import build
from commands.checks import absolute
from commands.config import Config
from commands.saved_config import DataInfo, SavedConfig, read_config, read_result
from commands.setting import ConfigError
from data import DataError, Dataset, is_dataset
from loops.errors import RunError
from loops.metrics import METRICS
from loops.records import checkpoint_files
from loops.records.metrics_log import read_rows
from loops.records.predictions import Predictions, read_predictions
from loops.records.run import METRICS as METRICS_FILE
from loops.schedule import Plan
from nets.table import trace


class Run:
    """A run directory, finished or not. Everything is read when it is asked for.

    Attributes:
        path: the directory.
        saved: the content of its `config.json`.
    """

    def __init__(self, path: pathlib.Path, saved: SavedConfig):
        self.path = path
        self.saved = saved

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Run":
        """Opens the run in a directory.

        Raises:
            RunError, ConfigError: the directory is not a run's, or its configuration is damaged.
        """
        path = absolute(path)
        saved = read_config(path)
        try:
            build.check_net(saved.settings, saved.workers)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{path / 'config.json'}: {error}") from error
        return cls(path, saved)

    @property
    def config(self) -> Config:
        """The settings, with every default filled in."""
        return self.saved.settings

    @property
    def data(self) -> DataInfo:
        """What the run remembers of its data: class names, image shape, sizes of the splits."""
        return self.saved.data

    @property
    def plan(self) -> Plan:
        """The length of the run in steps and epochs."""
        return Plan(self.config.epochs, self.data.examples["train"], self.config.batch_size)

    @property
    def metrics(self) -> list[dict]:
        """The rows of `metrics.jsonl`, in order."""
        return read_rows(self.path / METRICS_FILE)

    @property
    def result(self) -> dict | None:
        """The scores on the test split; None if the run is not finished."""
        return read_result(self.path, tuple(METRICS))

    @property
    def predictions(self) -> Predictions | None:
        """The predictions on the test split; None if the run is not finished, or has none."""
        return read_predictions(self.path)

    @property
    def checkpoints(self) -> dict[int, str]:
        """Paths of the checkpoints of the last states, by global step."""
        directory = self.path / "checkpoints"
        steps = checkpoint_files.saved_steps(directory)
        return {step: checkpoint_files.checkpoint_path(directory, step) for step in steps}

    def checkpoint(self, which: str | None = None) -> str:
        """The path of a checkpoint.

        Args:
            which: "best", "last", or a path of a checkpoint or of a directory of checkpoints. None:
                the best, or the last if the run has no validation split.

        Raises:
            RunError: there is none.
        """
        default = "best" if "val" in self.data.examples else "last"
        return checkpoint_files.find_checkpoint(self.path, which or default)

    def net(self, checkpoint: str | None = None, *, allow_changes: bool = False):
        """Builds the net with the weights of a checkpoint: `net(images, training=False)`.

        The weights are the averages, if the run keeps any. Call it in a strategy's scope to place
        the net on several devices.

        Args:
            checkpoint: as for `checkpoint`.
            allow_changes: build the net although its operations have changed since training.

        Raises:
            RunError: the net has changed, there is no such checkpoint, or it does not hold exactly
                the net's variables.
        """
        path = self.checkpoint(checkpoint)
        net = build.build_net(self.config, self.data)
        step = self.restore(net, path)
        if not allow_changes:
            self.check_operations(self.fingerprint(net), step)
        return net

    def fingerprint(self, net) -> str:
        """The fingerprint of a built net's operations, as in `config.json`."""
        return trace(net, self.data.image_shape).fingerprint

    def check_operations(self, fingerprint: str, step: int) -> None:
        """Raises RunError unless the net that was trained up to a step had this fingerprint."""
        trained = [code.net for code in self.saved.code if code.from_step < max(step, 1)]
        if trained and fingerprint != trained[-1]:
            raise RunError(
                f"the operations of {self.config.net} have changed since {self.path} was trained "
                f"to step {step:,} (fingerprint {fingerprint}, was {trained[-1]}). Undo the "
                "change, or allow it with --allow_changes (in Python, allow_changes=True)"
            )

    def restore(self, net, path: str) -> int:
        """Restores a net of this run from the path of a checkpoint; returns its global step.

        Raises:
            RunError: it does not hold exactly the net's variables.
        """
        return checkpoint_files.restore_net(net, path, average=self.config.ema_decay > 0)

    def dataset(self, data_dir: str | None = None, *, split: str | None = None) -> Dataset:
        """The run's data, split as in training.

        Args:
            data_dir: where it is now. Default: where it was.
            split: the only split that must be the same as in training. Default: all must be.

        Raises:
            ConfigError: there is no dataset of that name.
            DataError: it cannot be read.
            RunError: it is not the data that the run was trained with.
        """
        config = dataclasses.replace(self.config, data_dir=data_dir or self.config.data_dir)
        if not is_dataset(config.dataset):
            raise ConfigError(f"{self.path / 'config.json'}: unknown dataset {config.dataset!r}")
        dataset = build.load_data(config)
        for name in [split] if split else self.data.fingerprints:
            source = dataset.splits.get(name)
            found = None if source is None else f"{source.fingerprint():08x}"
            if found != self.data.fingerprints.get(name):
                raise RunError(
                    f"the {name} split of {self.data.name} is not the one that {self.path} was "
                    "trained with: files were added, removed or changed. Restore them, or score "
                    "them as other data with --dataset"
                )
        # With --init_from, images are normalized as the initial weights require.
        return dataclasses.replace(
            dataset, mean=self.data.mean, std=self.data.std, eval_crop=self.config.eval_crop
        )
