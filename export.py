"""Exports the net of a saved run, to be used without this project.

    python export.py --run_dir=runs/inception10-cifar10-3f9a1c --format=tflite model.tflite

The exported model takes uint8 images of any size. `python export.py --help` lists the flags.
"""

from commands import command_line
from commands.options import ExportOptions


def main(options: ExportOptions) -> None:
    """Exports a net."""
    # Imported here, after the flags are checked, since TensorFlow takes seconds to load.
    from commands.export import export

    command_line.clean_up_at_sigterm()
    export(options)


if __name__ == "__main__":
    command_line.run(main, ExportOptions)
