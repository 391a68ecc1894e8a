"""Settings of a trainer and of its updates."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often things happen.

    Attributes:
        log_steps: steps between rows of training metrics.
        eval_epochs: epochs between evaluations on the validation split.
        save_minutes: minutes between saves within an epoch; the end of an epoch always saves.
    """

    log_steps: int = 50
    eval_epochs: int = 1
    save_minutes: float = 10.0


@dataclasses.dataclass(frozen=True)
class FailurePolicy:
    """What to do on a failure.

    Attributes:
        on_nan: "stop"; "skip" the update; or "restore" the last checkpoint, and leave out the
            batches from there to the update that was not finite. `StepSettings.on_nan` is the same.
        on_save_error: "stop", or "continue" and try again at the next occasion.
    """

    on_nan: str = "stop"
    on_save_error: str = "stop"


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How an update is made.

    Attributes:
        global_batch_size: examples in an update, over all replicas.
        loss: a key of `loops.losses.LOSSES`.
        sizes: (step, size) in order: until that step, the shorter side of the images is scaled to a
            size; behind the last one they are trained on as they are.
        image_size: the shorter side of the images; needed where there are sizes.
        accumulation: number of microbatches a batch is cut into, which run one after the other to
            hold fewer activations; BatchNorm sees each alone. Each replica's examples are its share
            of the first microbatch, then of the second, and so on.
        class_weights: weight of each class in the loss; None for equal weights.
        label_smoothing: see `loops.losses.soft_targets`.
        weight_decay: see `loops.optimizer`.
        decoupled_decay: see `loops.optimizer.OptimizerChoice`.
        rate_multipliers: of the learning rate, one for each of `net.trainable_variables`; None for
            the same rate everywhere.
        clip_norm: highest global norm of the gradients of the whole batch; 0 disables clipping.
        ema_decay: decay of the moving averages per update.
        lookahead_steps: number of updates after which the weights go back half of the way to where
            they were the last time (Zhang et al. 2019, "Lookahead Optimizer", algorithm 1, with
            alpha 0.5); 0 for never. They do so after the last update of the run, too.
        total_steps: of the run; None if it is not known.
        auxiliary_weight: weight of each auxiliary head's loss, if the net returns more than its
            logits in training. The metrics are those of the net's own logits.
        seed: of what the net draws (dropout); None for a net that draws nothing and takes no seed.
        jit: compile the forward and backward pass with XLA.
        on_nan: what happens to an update whose loss or gradient is not finite. It is never made.
            "skip" counts it and continues; "stop" and "restore" leave the state as it was before,
            for the host to decide.
    """

    global_batch_size: int
    loss: str = "cross_entropy"
    sizes: tuple[tuple[int, int], ...] = ()
    image_size: int = 0
    accumulation: int = 1
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    decoupled_decay: bool = False
    rate_multipliers: tuple[float, ...] | None = None
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    lookahead_steps: int = 0
    total_steps: int | None = None
    auxiliary_weight: float = 0.0
    seed: int | None = None
    jit: bool = False
    on_nan: str = "stop"

    def pixels(self, start: int, stop: int) -> float:
        """Pixels of an image, summed over the updates from `start` to `stop`; 1 for full size.

        So it is the number of updates if there are no sizes.
        """
        total = 0.0
        for end, size in self.sizes:
            end = min(max(end, start), stop)
            total += (end - start) * (size / self.image_size) ** 2
            start = end
        return total + stop - start
