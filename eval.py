"""Scores a saved run.

    python eval.py --run_dir=runs/inception10-cifar10-3f9a1c

The run directory holds the net and its settings. `python eval.py --help` lists the flags.
"""

from commands import command_line
from commands.options import EvaluateOptions


def main(options: EvaluateOptions) -> None:
    """Scores a run."""
    # Imported here, after the flags are checked, since TensorFlow takes seconds to load.
    from commands.evaluate import evaluate

    evaluate(options)


if __name__ == "__main__":
    command_line.run(main, EvaluateOptions)
