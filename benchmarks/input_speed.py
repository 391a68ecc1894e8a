"""Measures how fast images reach the net.

    python benchmarks/input_speed.py --json=input_speed.json        # about ten minutes on two cores
    python benchmarks/input_speed.py --parts=decode --torch_python=/path/to/python

modes   a net on arrays of CIFAR's shape: augmented in the pipeline, or in the step, as on GPUs;
        the whole of training, and the pipeline alone
folder  a net on a folder of photographs, against arrays in memory with the same images
decode  photographs decoded at 224 pixels, and by PyTorch's DataLoader with torchvision and two
        workers, if `--torch_python` has them

The photographs are made for it: 500x375, JPEG of quality 90. What is compared takes turns, and each
figure is the median of `--repeats` windows with their range; still, run it on a quiet machine. CPU
seconds are those of all threads and processes.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
AUGMENT = "crop:4,flip"
_PREFETCHED = 8  # Batches, more than are prefetched on a machine of a few cores.
_SIZE = (500, 375)


def make_photographs(
    directory: pathlib.Path, count: int, classes: int = 10, size: tuple[int, int] = _SIZE
) -> None:
    """Writes JPEG files of about 50 to 100 KB: smooth noise and shapes, with fine grain."""
    generator = np.random.default_rng(0)
    for number in range(count + classes):
        split = "train" if number < count else "test"
        path = directory / split / f"{number % classes:02}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (9, 12, 3)).astype(np.uint8)
        image = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), float)
        for top, left in generator.integers(0, 300, (8, 2)):
            image[top : top + 70, left : left + 90] += generator.normal(0, 40, 3)
        image += generator.normal(0, 8, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def summary(values: list[float]) -> dict[str, float]:
    """Median and range of figures."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


class Window(NamedTuple):
    """What was measured once.

    Attributes:
        images: their number.
        seconds: that they took.
        cpu: CPU seconds that they took.
        waiting: the share of the time that a step waited for them; NaN without steps.
    """

    images: int
    seconds: float
    cpu: float
    waiting: float = np.nan


class Measured:
    """Images per second, and per CPU second, in windows of one thing.

    Args:
        name: for the report.
        window: measures once.
    """

    def __init__(self, name: str, window: Callable[[], Window]):
        self.name = name
        self.window = window
        self.per_second, self.per_cpu_second, self.waiting = [], [], []

    def measure(self) -> None:
        """Measures once more."""
        found = self.window()
        self.per_second.append(found.images / found.seconds)
        self.per_cpu_second.append(found.images / found.cpu)
        self.waiting.append(found.waiting)

    def report(self) -> dict:
        """Prints the figures, and returns them."""
        figures = {
            "images_per_second": summary(self.per_second),
            "images_per_cpu_second": summary(self.per_cpu_second),
        }
        texts = [
            f"{x['median']:9,.0f} ({x['low']:,.0f} to {x['high']:,.0f})" for x in figures.values()
        ]
        if not np.isnan(self.waiting).any():
            figures["waiting_for_data"] = summary(self.waiting)
            texts.append(f"{figures['waiting_for_data']['median']:.1%} waiting")
        print(f"  {self.name:<34}" + "  ".join(texts), flush=True)
        return {self.name: figures}


def take_turns(things: list[Measured], repeats: int) -> dict:
    """Measures each `repeats` times, in turn, and reports; the first windows do not count."""
    for thing in things:
        thing.window()
    for _ in range(repeats):
        for thing in things:
            thing.measure()
    return {key: x for thing in things for key, x in thing.report().items()}


def timed(images: int, make: Callable[[], None]) -> Window:
    """Measures how long it takes to make some images in this process."""
    started, cpu = time.monotonic(), time.process_time()
    make()
    return Window(images, time.monotonic() - started, time.process_time() - cpu)


def training(options, net: str, augment: str, sources: dict) -> dict[str, Callable]:
    """A window of training for each name; they train the same weights.

    Before each, some steps use up what was prefetched while another thing was measured.

    Args:
        options: the flags.
        net: name of a net.
        augment: as --augment.
        sources: by name, a source and whether its images are augmented in the step.
    """
    import tensorflow as tf

    import data
    from commands import build, session
    from commands.config import Config
    from loops.inputs import iterate

    def dataset(source):
        splits = {"train": source, "test": source}
        return data.Dataset("images", [str(n) for n in range(10)], splits, (0.5,) * 3, (0.25,) * 3)

    def window(source, on_device):
        pipeline = data.TrainPipeline(
            source,
            global_batch_size=config.batch_size,
            seed=0,
            augmentations=data.parse_augment(augment),
            mean=info.mean,
            std=info.std,
            num_classes=10,
            on_device=on_device,
        )
        step = session.make_step(config, info, labels, strategy, state, rate, pipeline.prepare)
        iterator = iterate(strategy, pipeline.batches(0))

        def measure():
            step.run(iterator, tf.constant(_PREFETCHED))
            step.seconds_waited()
            images = options.steps * config.batch_size
            found = timed(images, lambda: step.run(iterator, tf.constant(options.steps)))
            return found._replace(waiting=step.seconds_waited() / found.seconds)

        return measure

    whole = dataset(next(iter(sources.values()))[0])
    config = build.resolve(
        Config(net=net, batch_size=options.batch_size, augment=augment, warmup_epochs=0.0), whole
    )
    info, strategy = build.data_info(whole), tf.distribute.OneDeviceStrategy("CPU:0")
    labels = whole.splits["train"].labels
    _, rate = build.make_plan(config, len(labels))
    state = session.make_state(config, info, strategy, rate)
    return {name: window(*arguments) for name, arguments in sources.items()}


def alone(options, source, augment: str, *, on_device: bool, images: int) -> Callable:
    """A window of a pipeline whose batches nobody uses, from its start to its end."""
    import data

    pipeline = data.TrainPipeline(
        source,
        global_batch_size=options.batch_size,
        seed=0,
        augmentations=data.parse_augment(augment),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        num_classes=10,
        on_device=on_device,
    )
    steps = -(-images // options.batch_size)
    batches = pipeline.batches(0, steps)
    return lambda: timed(steps * options.batch_size, lambda: list(map(len, batches)))


def measure_modes(options, directory: pathlib.Path) -> dict:
    """Augmentation in the pipeline and in the step, on arrays of CIFAR's shape."""
    from data.source import ArraySource

    del directory
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (10_000, 32, 32, 3)).astype(np.uint8)
    source = ArraySource(images, generator.integers(0, 10, 10_000))
    windows = training(
        options,
        options.net,
        AUGMENT,
        {"augmented in the pipeline": (source, False), "augmented in the step": (source, True)},
    )
    things = [Measured(f"{options.net}, {name}", x) for name, x in windows.items()]
    for on_device, name in ((False, "pipeline alone, float32"), (True, "pipeline alone, uint8")):
        window = alone(options, source, AUGMENT, on_device=on_device, images=options.pipeline)
        things.append(Measured(name, window))
    return take_turns(things, options.repeats)


def open_photographs(directory: pathlib.Path, size: int):
    """The photographs as a source of square images of a size."""
    import data

    return data.load("folder", data_dir=directory, image_size=size, val_fraction=0).splits["train"]


def measure_folder(options, directory: pathlib.Path) -> dict:
    """Training from photographs, and from arrays of the same images."""
    import tensorflow as tf

    from data.source import ArraySource

    files = open_photographs(directory, options.folder_size)
    images = files.fetch(tf.range(len(files.labels), dtype=tf.int64)).numpy()
    sources = {"photographs": files, "arrays": ArraySource(images, files.labels)}
    windows = training(
        options, options.folder_net, AUGMENT, {k: (x, False) for k, x in sources.items()}
    )
    return take_turns(
        [Measured(f"{options.folder_net}, {name}", x) for name, x in windows.items()],
        options.repeats,
    )


def measure_decode(options, directory: pathlib.Path) -> dict:
    """Photographs decoded at a size, with the middle or a random part cut out."""
    files, found = open_photographs(directory, options.size), {}
    for crop, augment in (("center", "none"), ("random", "random_resized_crop")):
        window = alone(options, files, augment, on_device=True, images=len(files.labels))
        things = [Measured(f"{crop} crop, this project", window)]
        if options.torch_python:
            window = functools.partial(with_torch, options, directory, crop)
            things.append(Measured(f"{crop} crop, PyTorch", window))
        found |= take_turns(things, options.repeats)
    return found


def with_torch(options, directory: pathlib.Path, crop: str) -> Window:
    """A pass over the photographs by PyTorch's DataLoader, in a process of its own."""
    command = [
        options.torch_python,
        str(ROOT / "benchmarks" / "input_speed_torch.py"),
        str(directory / "train"),
        f"--size={options.size}",
        f"--crop={crop}",
        f"--batch_size={options.batch_size}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return Window(*json.loads(done.stdout))


PARTS = {"modes": measure_modes, "folder": measure_folder, "decode": measure_decode}


def main() -> None:
    """Measures the parts that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--torch_python", help="an interpreter that has torch and torchvision")
    parser.add_argument("--repeats", type=int, default=7, help="windows of each")
    parser.add_argument("--steps", type=int, default=30, help="updates in a window of training")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--pipeline", type=int, default=50_000, help="images in a window without")
    parser.add_argument("--photographs", type=int, default=1024)
    parser.add_argument("--size", type=int, default=224, help="pixels at which they are decoded")
    parser.add_argument("--net", default="inception10")
    parser.add_argument("--folder_net", default="resnet18")
    parser.add_argument("--folder_size", type=int, default=32, help="pixels, for --folder_net")
    options = parser.parse_args()
    found = {"cores": len(os.sched_getaffinity(0)), "options": vars(options)}
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        names = options.parts.split(",")
        if set(names) - {"modes"}:
            make_photographs(directory, options.photographs)
        for name in names:
            print(f"{name}{'images/s':>38}{'images per CPU second':>34}")
            found[name] = PARTS[name](options, directory)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
