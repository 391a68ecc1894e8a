"""The hook: what a trainer calls while it trains.

    class PrintLoss(Hook):
        def on_log(self, trainer, row):
            print(trainer.step, row["loss"])

A hook may read these attributes of the `trainer` that it is given:

- `run_dir` (pathlib.Path), `state` (TrainState), `plan` (Plan), `workers` (Workers)
- `step` (int): the global step
- `evaluated_step` (int): the last step whose validation row the state includes; -1 for none
- `timings` (dict of floats): measured since the last row: `images_per_second`, and
  `waiting_for_data`, the share of the time in [0, 1] that was spent waiting for batches
- `train_step` (TrainStep) and `batches` (the training batches): to look at an update again
- `best` (Best): the best validation figures so far; in `on_evaluate`, those before the row
- `is_last(row)` (bool): whether training ends with the evaluation on val that made a row
- `activity` (str): what the trainer is doing, such as "training" or "evaluating"
- `seconds_left` (float): estimated time to the end of the run; NaN if unknown

Hooks run on every worker, in the order in which they were given. A method raises `SaveError` when
something cannot be written; the hook keeps what is pending and tries again at its next call.

A step is traced once, so that it does not see what a hook changes in Python, such as which stages
are frozen; it does see variables that a hook assigns. No checkpoint has the attributes of a hook.
"""


class Hook:
    """A base class whose methods do nothing. Override the ones you need."""

    def on_start(self, trainer) -> None:
        """Training is about to continue from `trainer.step`, a fresh or a restored state.

        Called before the first step, and again after training has gone back to a checkpoint
        (`--on_nan=restore`). Rows of later steps will be logged again.
        """

    def on_progress(self, trainer) -> None:
        """Called about once a second, between calls of the device loop."""

    def next_step(self, step: int) -> int | None:
        """The first global step after `step` at which `on_step` is to be called; None for none."""
        return None

    def on_step(self, trainer) -> None:
        """The global step has reached a value that `next_step` of this hook has returned.

        Called before a row of the same step is logged.
        """

    def on_log(self, trainer, row: dict) -> None:
        """A row of training metrics, averaged over the steps since the last one.

        A hook may add numbers to `row`; later hooks see them. `row` has
        `split` ("train"), `step`, `epoch`, `loss`, every metric, `learning_rate`,
        `gradient_norm`, `highest_loss` (that of the update with the highest), `weight_norm` and, if
        there were any, `skipped_updates`.
        """

    def on_evaluate(self, trainer, row: dict, scores) -> None:
        """A split has been evaluated.

        `row` has `split` ("val" or "test"), `step`, `epoch`, `loss` and every metric; `scores` are
        the same figures as the evaluator returned them.
        """

    def on_epoch(self, trainer) -> None:
        """An epoch has ended, and its evaluation and its save are done."""

    def on_save(self, trainer) -> None:
        """A checkpoint is about to be written.

        What leads to this state must be on disk when the method returns.
        """

    def on_end(self, trainer, outcome) -> None:
        """The test split is scored and logged; `outcome` is what `Trainer.run` returns."""
