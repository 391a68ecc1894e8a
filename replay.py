"""Shows a step of a run again: its batch, its loss and its gradients.

    python replay.py --run_dir=runs/inception10-cifar10-3f9a1c --step=1234

Nothing in the run is changed. `python replay.py --help` lists the flags.
"""

from commands import command_line
from commands.options import ReplayOptions


def main(options: ReplayOptions) -> None:
    """Replays a step."""
    # Imported here, after the flags are checked, since TensorFlow takes seconds to load.
    from commands.replay import replay

    replay(options)


if __name__ == "__main__":
    command_line.run(main, ReplayOptions)
