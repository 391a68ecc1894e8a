"""Scores a saved run.

    python eval.py --run_dir=runs/inception10-cifar10-3f9a1c

Nothing of the net is repeated: the run directory knows it. `python eval.py --help` lists the flags.
"""

import cli


def main(flags: dict) -> None:
    """Hands the flags on."""
    # Imported once the flags are known to be good: TensorFlow takes seconds to start.
    with cli.quiet_start():
        import evaluation
        import experiment
    with experiment.plain_errors():
        evaluation.evaluate(flags)


if __name__ == "__main__":
    cli.run(main, cli.define_eval_flags)
