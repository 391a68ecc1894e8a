"""Classifies images with a saved run.

    python predict.py --run_dir=runs/inception10-cifar10-3f9a1c photo.jpg photos/ '*.png'

Prints the most probable classes of each image. Arguments are image files, directories, of which all
JPEG and PNG files are read at any depth, patterns such as 'photos/**/*.webp', or - for paths on
standard input, one per line. `python predict.py --help` lists the flags.
"""

from commands import command_line
from commands.options import PredictOptions


def main(options: PredictOptions) -> None:
    """Classifies images."""
    # Imported here, after the flags are checked, since TensorFlow takes seconds to load.
    from commands.predict import predict

    predict(options)


if __name__ == "__main__":
    command_line.run(main, PredictOptions)
