"""Trains an image classifier.

    python train.py --net=inception10 --dataset=cifar10 --num_gpus=2

Rerunning the command resumes the run. `python train.py --help` lists the flags.
"""

import time

from commands import command_line
from commands.options import TrainOptions

_STARTED = time.monotonic()


def main(options: TrainOptions) -> None:
    """Trains, or resumes a run."""
    # Imported here, after the flags are checked, since TensorFlow takes seconds to load.
    from commands.train import train

    train(options, started=_STARTED)


if __name__ == "__main__":
    command_line.run(main, TrainOptions)
