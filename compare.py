"""Compares saved runs, and says whether a difference is real.

    python compare.py runs/inception10-cifar10-3f9a1c runs/resnet18-cifar10-b2d417

Runs that differ in their seed alone are summarized together.
`python compare.py --help` lists the flags.
"""

from commands import command_line
from commands.options import CompareOptions


def main(options: CompareOptions) -> None:
    """Compares runs."""
    # Imported here, after the flags are checked, since TensorFlow takes seconds to load.
    from commands.compare import compare

    compare(options)


if __name__ == "__main__":
    command_line.run(main, CompareOptions)
