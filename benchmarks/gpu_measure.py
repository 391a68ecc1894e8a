"""One measurement of `gpu.py`, in a process of its own, so that none can disturb another.

    python benchmarks/gpu_measure.py '{"what": "machine"}'
    python benchmarks/gpu_measure.py '{"what": "tensorflow", "net": "resnet50", ...}'

Prints the result as JSON, in the last line. An error, such as exhausted memory, ends the process
with a traceback.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable

_STARTED = time.perf_counter()  # Before TensorFlow or PyTorch is imported.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
LABEL_SMOOTHING = {"inception_v3": 0.1}  # As the net's own, in PyTorch's net as well.
AUXILIARY_WEIGHT = 0.4


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        what: "tensorflow" for this project, or "pytorch".
        variant: "plain" or "jit"; of PyTorch "eager" or "compile".
        net: "resnet18", "resnet50" or "inception_v3".
        image_size: height and width in pixels.
        classes: number of classes.
        precision: a value of --precision.
        batch_size: examples per replica.
        replicas: number of GPUs, or of logical CPU devices in a rehearsal.
        on_gpus: False for a rehearsal.
        windows: number of timings.
        seconds: duration of each, in about.
    """

    what: str
    variant: str
    net: str
    image_size: int
    classes: int
    precision: str
    batch_size: int
    replicas: int
    on_gpus: bool
    windows: int
    seconds: float


def machine() -> dict:
    """What the figures depend on: GPUs, driver, and versions."""
    import tensorflow as tf

    from loops.distributed.gpus import why_none

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    built = tf.sysconfig.get_build_info()
    return {
        "gpus": [each.get("device_name", "unknown") for each in details],
        "why_no_gpu": None if gpus else why_none(os.environ),
        "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": built.get("cuda_version"),
        "cudnn": built.get("cudnn_version"),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "commit": _printed("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def _printed(*command: str) -> str | None:
    """The first line that a command prints; None if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [None])[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def time_steps(run: Callable[[int], None], spec: Spec) -> dict:
    """Times a training.

    Args:
        run: makes so many updates, and returns when they are made.
        spec: of the measurement.

    Returns:
        "first_step_seconds", from the start of the process to the end of the first update, and
        "images_per_second", one for each window.
    """
    run(1)
    first = time.perf_counter() - _STARTED
    run(2)
    seconds = _seconds(lambda: run(2)) / 2
    if spec.on_gpus:  # Clocks and caches settle.
        steps = max(5, math.ceil(spec.seconds / seconds))
        seconds = _seconds(lambda: run(steps)) / steps
    steps = max(1, round(spec.seconds / seconds))
    times = [_seconds(lambda: run(steps)) for _ in range(spec.windows)]
    images = steps * spec.batch_size * spec.replicas
    return {"first_step_seconds": first, "images_per_second": [images / t for t in times]}


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def prepared_step(config, dataset) -> tuple:
    """What train.py makes for the training step alone.

    Returns:
        The pipeline of the train split, the state and the `TrainStep`.
    """
    from commands import build, session
    from loops.distributed.devices import make_strategy
    from loops.distributed.workers import Workers

    strategy, _ = make_strategy(config.num_gpus, config.device, precision=config.precision)
    config = build.resolve(config, dataset)
    info, source = build.data_info(dataset), dataset.splits["train"]
    batches = build.train_pipeline(config, info, source, Workers(strategy))
    _, learning_rate = build.make_plan(config, len(source.labels))
    state = session.make_state(config, info, strategy, learning_rate)
    step = session.make_step(
        config, info, source.labels, strategy, state, learning_rate, batches.prepare
    )
    return batches, state, step


def tensorflow_speed(spec: Spec) -> dict:
    """The speed of a `TrainStep` on batches of the project's pipeline, of images in memory."""
    import tensorflow as tf

    from commands.config import Config
    from loops.inputs import iterate

    config = Config(
        net=spec.net,
        batch_size=spec.batch_size * spec.replicas,
        num_gpus=spec.replicas,
        device="gpu" if spec.on_gpus else "cpu",
        precision=spec.precision,
        learning_rate=0.01,  # The labels mean nothing, and the loss should stay finite.
        jit=spec.variant == "jit",
    )
    batches, state, step = prepared_step(config, _random_images(spec))
    iterator = iterate(step.strategy, batches.batches(0))
    waited = []

    def run(steps: int) -> None:
        before = state.step
        started = time.perf_counter()
        step.run(iterator, tf.constant(steps))
        if state.step != before + steps:  # It also waits for the end.
            raise RuntimeError("an update was not finite")
        waited.append(step.seconds_waited() / (time.perf_counter() - started))

    found = time_steps(run, spec)
    found["waiting"] = waited[-spec.windows :]
    if spec.on_gpus:
        peaks = [
            tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in range(spec.replicas)
        ]
        found["peak_bytes"] = max(peaks)
    if spec.replicas > 1:
        found["all_reduce_seconds"] = _all_reduce_seconds(
            step.strategy, state.net.trainable_variables
        )
    return found


def _random_images(spec: Spec):
    """A dataset in memory, of about 300 MB at most."""
    import numpy as np

    import data
    from data.source import ArraySource

    size, generator = spec.image_size, np.random.default_rng(0)
    count = max(spec.classes, min(10_000, 300_000_000 // (3 * size * size)))
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(count) % spec.classes)
    return data.Dataset(
        name="random",
        class_names=[str(i) for i in range(spec.classes)],
        splits={"train": source, "test": source},
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        augment="crop:4,flip",
    )


def _all_reduce_seconds(strategy, variables, repeats: int = 8) -> float:
    """The time to sum tensors like the gradients over the replicas."""
    import tensorflow as tf

    def sums():
        replicas = tf.distribute.get_replica_context()
        values = [tf.ones(v.shape) / replicas.num_replicas_in_sync for v in variables]
        for _ in range(repeats):  # Each sum needs the one before.
            summed = replicas.all_reduce("SUM", values)
            values = [x / replicas.num_replicas_in_sync for x in summed]
        return tf.add_n([tf.reduce_sum(x) for x in values])

    @tf.function
    def run():
        return strategy.run(sums)

    def wait() -> None:
        for value in strategy.experimental_local_results(run()):
            value.numpy()

    for _ in range(2):
        wait()
    return min(_seconds(wait) for _ in range(5)) / repeats


def pytorch_speed(spec: Spec) -> dict:
    """The speed of torchvision's net, channels last, on a batch that stays on the device."""
    import torch

    device = "cuda" if spec.on_gpus else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
        spec.precision != "float32"
    )
    net = _torchvision_net(spec).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    shape = (spec.batch_size, 3, spec.image_size, spec.image_size)
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(spec.batch_size, device=device) % spec.classes
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING.get(spec.net, 0.0))
    half = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(spec.precision)
    scaler = torch.amp.GradScaler(device, enabled=half is torch.float16)
    forward = torch.compile(net) if spec.variant == "compile" else net

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=half, enabled=half is not None):
                outputs = forward(images)
                logits, *auxiliary = [outputs] if torch.is_tensor(outputs) else outputs
                loss = criterion(logits, labels)
                for other in auxiliary:
                    loss = loss + AUXILIARY_WEIGHT * criterion(other, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        loss.item()  # Waits for the end.

    found = time_steps(run, spec)
    if spec.on_gpus:
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _torchvision_net(spec: Spec):
    """The net as this project has it."""
    import torch
    import torchvision

    more = {"init_weights": False, "aux_logits": True} if spec.net == "inception_v3" else {}
    make = getattr(torchvision.models, spec.net)
    net = make(weights=None, num_classes=spec.classes, **more)
    if spec.image_size < 96 and spec.net.startswith("resnet"):  # The small stem.
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
    return net


def main() -> None:
    """Makes the measurement that the argument describes."""
    request = json.loads(sys.argv[1])
    if request["what"] == "machine":
        found = machine()
    else:
        spec = Spec(**request)
        found = {"tensorflow": tensorflow_speed, "pytorch": pytorch_speed}[spec.what](spec)
    print(json.dumps(found), flush=True)
    # Without TensorFlow's end, which can wait for a pipeline on a GPU for up to a minute.
    os._exit(0)


if __name__ == "__main__":
    main()
