"""What a worker is to do; the command sends it as JSON."""

import dataclasses
import time

PRECISIONS = ("float32", "mixed_bfloat16")
MEAN, STD = (0.5,) * 3, (0.25,) * 3  # Of the images, for pixels in [0, 1].
PADDING = 4  # Of the random crop, in pixels.
WEIGHT_DECAY, MOMENTUM = 5e-4, 0.9  # As train.py's defaults.
LEARNING_RATE = 0.01  # The labels mean nothing, and the loss should stay finite.
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Job:
    """One contestant.

    Attributes:
        framework: "ours", "keras" or "torch".
        task: what is measured, a key of `TASKS` of the framework's module.
        variant: how, where there are several ways.
        net: a key of `benchmarks.speed.nets.NETS`.
        image_size: height and width in pixels.
        precision: one of `PRECISIONS`.
        batch_size: examples in a step.
        replicas: number of GPUs, or of logical CPU devices.
        directory: with the examples, and for what the worker writes.
        dataset: "made_up", for the examples in `directory`, or a dataset of train.py.
        data_dir: of the dataset.
        started: `time.monotonic()` when the process was started.
    """

    framework: str
    task: str
    variant: str = ""
    net: str = "inception10"
    image_size: int = 32
    precision: str = "float32"
    batch_size: int = 128
    replicas: int = 1
    directory: str = ""
    dataset: str = "made_up"
    data_dir: str | None = None
    started: float = dataclasses.field(default_factory=time.monotonic, compare=False)

    @property
    def name(self) -> str:
        """For people, without the precision."""
        names = {"ours": "this project", "keras": "Keras", "torch": "PyTorch"}
        task = {"train": "", "step": "step alone"}.get(self.task, self.task)
        return ", ".join(filter(None, (names[self.framework], task, self.variant)))
