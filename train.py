"""Trains an image classifier.

    python train.py --net=inception10 --dataset=cifar10 --num_gpus=2

The same command again goes on with its run. `python train.py --help` lists the flags.
"""

import cli


def main(flags: dict) -> None:
    """Hands the flags on."""
    # Imported once the flags are known to be good: TensorFlow takes seconds to start.
    with cli.quiet_start():
        import experiment
    with experiment.plain_errors():
        experiment.train(flags)


if __name__ == "__main__":
    cli.run(main, cli.define_train_flags)
