"""Transfer on CIFAR-10: 20 images per class, with and without another run's weights.

    python benchmarks/transfer.py runs/transfer              # about half an hour on two idle cores
    python benchmarks/transfer.py runs/transfer --tune       # how the learning rates were chosen

A net is trained on all images of five classes (`source`). From its weights, nets are trained on 20
images of each of the other five classes (`target`): the whole net, the whole net with a higher rate
for the head, and the head alone; and one from random weights. Each makes 600 updates of 50 images,
with three seeds, and is scored once, after its last update, on the 5,000 test images of the five
classes. All seeds use the same 20 images per class and the same source. Prints what compare.py
does.

The peak learning rates are those with the highest accuracy of `--tune`: one seed each, trained on
20 other images per class and scored on 200 further ones, all from the train split.

Directories of PNG files are made of any installed CIFAR-10 or CIFAR-100. The command can be stopped
and repeated; runs are resumed.
"""

import argparse
import os
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import data
from commands.compare import compare_runs
from commands.comparison_report import as_text
from commands.options import TrainOptions
from commands.train import train

PER_CLASS, SEEDS = 20, (0, 1, 2)
COMMON = {
    "net": "inception10", "dataset": "folder", "image_size": 32, "augment": "crop:4,flip",
    "precision": "mixed_bfloat16", "val_fraction": 0.0, "verbosity": 0,
}  # fmt: skip
SOURCE = {"epochs": 15.0}
SHORT = {"epochs": 300.0, "batch_size": 50, "log_steps": 200}
TRUNK = ("stem", "stage_1", "stage_2")
# What is compared, and the rates that are tried: of the trunk, and of the head if another.
ARMS = {
    "scratch": ({}, [(0.05, None), (0.1, None), (0.2, None), (0.4, None)]),
    "whole": (
        {"init_from": "source"},
        [(0.002, None), (0.005, None), (0.01, None), (0.02, None), (0.05, None)],
    ),
    "head_rate": (
        {"init_from": "source"},
        [(0.0005, 0.005), (0.001, 0.01), (0.002, 0.02), (0.005, 0.05), (0.01, 0.1), (0.02, 0.2)],
    ),
    "frozen": (
        {"init_from": "source", "freeze": TRUNK},
        [(0.02, None), (0.05, None), (0.1, None), (0.2, None)],
    ),
}
CHOSEN = {
    "scratch": (0.2, None),
    "whole": (0.005, None),
    "head_rate": (0.001, 0.01),
    "frozen": (0.05, None),
}


def write_tree(dataset: data.Dataset, root: pathlib.Path, classes, numbers: dict) -> None:
    """Writes images as root/<split>/<class>/<number>.png, unless that has been done.

    Args:
        dataset: with the splits train and test.
        root: the directory, which is complete once it exists.
        classes: numbers of the classes.
        numbers: for each new split, the split that it is taken from, and a function from the
            numbers of a class's examples to those that are written.
    """
    if root.exists():
        return
    partial = root.with_name(root.name + ".partial")
    for name, (split, chosen) in numbers.items():
        source = dataset.splits[split]
        for label in classes:
            directory = partial / name / dataset.class_names[label]
            directory.mkdir(parents=True, exist_ok=True)
            examples = chosen(np.flatnonzero(np.asarray(source.labels) == label))
            for number, image in zip(examples, source.fetch(examples).numpy(), strict=True):
                Image.fromarray(image).save(directory / f"{number:05d}.png")
    partial.rename(root)


def write_trees(root: pathlib.Path, name: str) -> None:
    """Writes the trees: source and target for the result, tune for the choice of the rates."""
    dataset = data.load(name, val_fraction=0.0)
    half = len(dataset.class_names) // 2
    first, second = range(half), range(half, 2 * half)

    def few(start: int, stop: int):
        """Examples of each class, drawn once, without those of another range."""
        return lambda numbers: np.random.default_rng(0).permutation(numbers)[start:stop]

    test = ("test", lambda numbers: numbers)
    write_tree(dataset, root / "source", first, {"train": ("train", lambda x: x), "test": test})
    train_split = ("train", few(0, PER_CLASS))
    write_tree(dataset, root / "target", second, {"train": train_split, "test": test})
    tune = {
        "train": ("train", few(PER_CLASS, 2 * PER_CLASS)),
        "test": ("train", few(2 * PER_CLASS, 2 * PER_CLASS + 200)),
    }
    write_tree(dataset, root / "tune", second, tune)


def run(root: pathlib.Path, tree: str, name: str, **settings):
    """Trains a run in root/runs/<name>, or finishes it."""
    if "init_from" in settings:
        settings["init_from"] = str(root / "runs" / settings["init_from"])
    print(f"{name}:", end=" ", flush=True)
    return train(
        TrainOptions(
            **{**COMMON, **settings},
            data_dir=str(root / "trees" / tree),
            run_dir=str(root / "runs" / name),
        )
    )


def tune(root: pathlib.Path) -> None:
    """Trains once with every rate, on other images than the result."""
    for arm, (settings, rates) in ARMS.items():
        for rate, head in rates:
            name = f"tune/{arm}-{rate:g}" + (f"-{head:g}" if head else "")
            more = {"learning_rate": rate, "head_learning_rate": head}
            run(root, "tune", name, **SHORT, **settings, **more)


def main() -> None:
    """Writes the trees, trains the runs, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--dataset", default="cifar10", choices=("cifar10", "cifar100"))
    parser.add_argument("--tune", action="store_true", help="try the learning rates, and exit")
    arguments = parser.parse_args()
    root = arguments.directory.resolve()
    os.makedirs(root / "trees", exist_ok=True)
    write_trees(root / "trees", arguments.dataset)
    run(root, "source", "source", **SOURCE)
    if arguments.tune:
        tune(root)
        return
    runs = []
    for arm, (settings, _) in ARMS.items():
        rate, head = CHOSEN[arm]
        more = {"learning_rate": rate, "head_learning_rate": head}
        runs += [
            run(root, "target", f"{arm}/seed_{seed}", **SHORT, **settings, **more, seed=seed)
            for seed in SEEDS
        ]
    print(as_text(compare_runs([run.path for run in runs])))


if __name__ == "__main__":
    main()
