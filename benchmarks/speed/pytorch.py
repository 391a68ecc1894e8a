"""PyTorch's part of the comparison: a loop with batches of a data set in memory."""

import contextlib
import copy
import itertools
import os
import pathlib

import numpy as np
import torch
from torch.nn import functional

from benchmarks.speed import examples
from benchmarks.speed.job import LEARNING_RATE, MEAN, MOMENTUM, PADDING, STD, WEIGHT_DECAY, Job
from benchmarks.speed.nets import NETS
from benchmarks.speed.torch_nets import Net, fold, multiply_adds, set_weights
from benchmarks.speed.worker import Channel, Meter


def _device() -> torch.device:
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Batches:
    """Endless training batches, made of whole tensors.

    Args:
        job: with the examples.
        device: that holds them.
    """

    def __init__(self, job: Job, device: torch.device):
        self._images, self._labels = (
            torch.from_numpy(x).to(device) for x in examples.read(job.directory)
        )
        self._labels = self._labels.long()
        self._batch_size, self._device = job.batch_size, device
        self._scale = torch.tensor([1 / (255 * s) for s in STD], device=device)
        self._offset = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=device)

    def normalized(self, images):
        """uint8 [n, height, width, channels] as float32 [n, channels, height, width]."""
        # A view, which is channels_last.
        return (images * self._scale + self._offset).permute(0, 3, 1, 2)

    def training(self):
        """Yields images, cropped and flipped at random, and labels."""
        while True:
            order = torch.randperm(len(self._labels), device=self._device)
            for start in range(0, len(order) - self._batch_size + 1, self._batch_size):
                chosen = order[start : start + self._batch_size]
                rows, columns = (self._places(size) for size in self._images.shape[1:3])
                flips = torch.rand(len(chosen), 1, device=self._device) < 0.5
                columns = torch.where(flips, columns.flip(1), columns)
                places = (chosen[:, None, None], rows[:, :, None], columns[:, None, :])
                yield self.normalized(self._images[places]), self._labels[chosen]

    def _places(self, size: int):
        """Rows or columns of a random crop of each image, the border reflected."""
        offsets = torch.randint(-PADDING, PADDING + 1, (self._batch_size, 1), device=self._device)
        found = (torch.arange(size, device=self._device) + offsets).abs()
        return torch.minimum(found, 2 * (size - 1) - found)

    def testing(self):
        """Yields the batches of the test split once."""
        for start in range(0, min(len(self._labels), examples.TEST_EXAMPLES), self._batch_size):
            part = slice(start, start + self._batch_size)
            yield self.normalized(self._images[part]), self._labels[part]


class Precision:
    """How a net computes.

    Args:
        net: in float32.
        precision: of the job.
        variant: of the job: "eager" or "compiled", and ", bfloat16 weights" for convolutions with
            copies of the float32 weights instead of autocast.
    """

    def __init__(self, net: Net, precision: str, variant: str):
        self._half = precision != "float32"
        self.weights = [w for w in net.parameters() if w.requires_grad]
        self._copies, self._originals = [], []
        if self._half and "weights" in variant:
            self._half = False
            for module in net.modules():
                if isinstance(module, torch.nn.Conv2d):  # BatchNorm stays float32, as everywhere.
                    original = module.weight
                    half = original.detach().bfloat16()
                    half = half.contiguous(memory_format=torch.channels_last)
                    module.weight = torch.nn.Parameter(half)
                    self._copies.append(module.weight)
                    self._originals.append(original)
                    if module.bias is not None:  # Of a BatchNorm that is folded.
                        module.bias.data = module.bias.data.bfloat16()
        self.input_dtype = torch.bfloat16 if self._copies else torch.float32

    def context(self, device: torch.device):
        """Inside, the forward pass runs."""
        if self._half:
            return torch.autocast(device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def take_gradients(self) -> None:
        """Gives the gradients of the copies to the weights."""
        for half, original in zip(self._copies, self._originals, strict=True):
            original.grad = half.grad.float()
            half.grad = None

    def copy_weights(self) -> None:
        """Makes the copies equal to the weights."""
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._originals)


def _net(job: Job, device: torch.device) -> Net:
    return Net(NETS[job.net](job.image_size)).to(device, memory_format=torch.channels_last)


def train(job: Job, channel: Channel) -> None:
    """A training loop with loss and accuracy, as they are written for CIFAR."""
    device = _device()
    net, description = _net(job, device).train(), NETS[job.net](job.image_size)
    precision = Precision(net, job.precision, job.variant)
    groups = [
        {"params": [w for w in precision.weights if w.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [w for w in precision.weights if w.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(groups, LEARNING_RATE, MOMENTUM, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1_000_000)
    forward = torch.compile(net) if job.variant.startswith("compiled") else net
    losses, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    meter = Meter(channel, job.started, job.batch_size, _finish)
    for steps, (images, labels) in enumerate(Batches(job, device).training(), start=1):
        with precision.context(device):
            logits = forward(images.to(precision.input_dtype))
            loss = functional.cross_entropy(
                logits, labels, label_smoothing=description.label_smoothing
            )
        loss.backward()
        precision.take_gradients()
        optimizer.step()
        precision.copy_weights()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses += loss.detach()
        correct += (logits.detach().argmax(1) == labels).sum()
        meter.at(steps)


def evaluate(job: Job, channel: Channel) -> None:
    """Loss and accuracy of the test split, again and again."""
    device = _device()
    net = _net(job, device).eval()
    if "folded" in job.variant:
        fold(net)
    precision = Precision(net, job.precision, job.variant)
    forward = torch.compile(net) if job.variant.startswith("compiled") else net
    batches = Batches(job, device)
    split = [len(labels) for _, labels in batches.testing()]
    meter, steps = Meter(channel, job.started, np.mean(split), _finish), itertools.count(1)
    while True:
        losses = correct = 0.0
        for images, labels in batches.testing():
            with torch.inference_mode(), precision.context(device):
                logits = forward(images.to(precision.input_dtype))
                losses += functional.cross_entropy(logits, labels, reduction="sum")
                correct += (logits.argmax(1) == labels).sum()
            meter.at(next(steps))


def pipeline(job: Job, channel: Channel) -> None:
    """Training batches that nobody uses."""
    meter = Meter(channel, job.started, job.batch_size, _finish)
    for steps, _ in enumerate(Batches(job, _device()).training(), start=1):
        meter.at(steps)


def roof(job: Job, channel: Channel) -> None:
    """A matrix product in a precision; an image is a multiplication and an addition, in 1e9."""
    device, size = _device(), job.batch_size
    dtype = torch.float32 if job.precision == "float32" else torch.bfloat16
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    meter = Meter(channel, job.started, 2e-9 * size**3, _finish)
    for steps in itertools.count(1):
        torch.mm(one, other)
        meter.at(steps)


def check(job: Job, channel: Channel) -> None:
    """What the net makes of the weights and the batch of `ours.check`."""
    directory = pathlib.Path(job.directory)
    weights, batch = np.load(directory / "weights.npz"), np.load(directory / "batch.npz")
    description = NETS[job.net](job.image_size)._replace(dropout=0.0)
    net = Net(description).to(memory_format=torch.channels_last)
    set_weights(net.named, weights)
    images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2)
    evaluated = net.eval()(images)
    folded = fold(copy.deepcopy(net))(images)
    trained = net.train()(images)
    loss = functional.cross_entropy(
        trained,
        torch.from_numpy(batch["labels"]).long(),
        label_smoothing=description.label_smoothing,
    )
    loss.backward()
    norms = [parameter.grad.norm() for parameter in net.parameters()]
    np.savez(
        directory / "torch.npz",
        evaluated=evaluated.detach().numpy(),
        folded=folded.detach().numpy(),
        trained=trained.detach().numpy(),
        loss=loss.detach().numpy(),
        gradient_norm=torch.stack(norms).norm().numpy(),
        parameters=sum(p.numel() for p in net.parameters()),
        multiply_adds=multiply_adds(net, job.image_size),
    )
    channel.send(done=True)


TASKS = {
    "train": train,
    "evaluate": evaluate,
    "pipeline": pipeline,
    "roof": roof,
    "check": check,
}
