"""The PyTorch half of `input_speed.py`, for an interpreter that has torch and torchvision.

    python benchmarks/input_speed_torch.py DIRECTORY --size=224 --crop=center --workers=2

Reads all images of DIRECTORY/<class>/ once with a DataLoader, and prints one line of JSON: the
number of images, the seconds, and the CPU seconds of this process and its workers (on Linux).
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import time

import torch
from torchvision import datasets, transforms


def crops(name: str, size: int) -> list:
    """The transforms that make an image of `size` out of a photograph."""
    if name == "random":
        return [transforms.RandomResizedCrop(size)]
    return [transforms.Resize(size), transforms.CenterCrop(size)]


def cpu_seconds() -> float:
    """CPU time of this process and its living children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    """Measures what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--crop", choices=["center", "random"], default="center")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    transform = transforms.Compose([*crops(options.crop, options.size), transforms.PILToTensor()])
    files = datasets.ImageFolder(options.directory, transform)
    order = list(range(min(len(files), options.workers * options.batch_size)))
    loader = torch.utils.data.DataLoader(
        files,
        options.batch_size,
        sampler=order,
        num_workers=options.workers,
        persistent_workers=True,
    )
    list(map(len, loader))  # Starts the workers, which make a batch each.
    order[:] = range(len(files))
    cpu, started = cpu_seconds(), time.monotonic()
    images = sum(len(x) for x, _ in loader)
    print(json.dumps([images, time.monotonic() - started, cpu_seconds() - cpu]))


if __name__ == "__main__":
    main()
