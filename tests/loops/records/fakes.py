"""Stand-ins for what hooks are given."""

import math


class Number:
    """As a variable."""

    def __init__(self, value):
        self.value = value

    def numpy(self):
        return self.value


class State:
    def __init__(self, best_step=-1):
        self.progress = {"best_step": Number(best_step)}
        self.window = {"steps": Number(0)}


class FakePlan:
    """Three epochs of 11 steps."""

    epochs, total_steps = 3, 33

    def epoch(self, step):
        return step / 11

    def whole_epochs(self, step):
        return step // 11

    def epoch_start(self, step):
        return step - 11


class FakeBest:
    """The best figures so far, which the next ones beat or not."""

    beaten = False

    def is_beaten_by(self, figures):
        assert {"loss", "top_1_accuracy"} <= figures.keys()
        return self.beaten


class FakeTrainer:
    """What a hook reads of a trainer."""

    def __init__(self, step=0, evaluated_step=-1, plan=None, **timings):
        self.step = step
        self.evaluated_step = evaluated_step
        self.plan = plan
        self.timings = timings
        self.activity = "training"
        self.seconds_left = math.nan
        self.state = State()
        self.best = FakeBest()
        self.stops_early = False

    def is_last(self, row):
        return self.stops_early or row["step"] >= self.plan.total_steps


def row(split, step, **figures):
    return {"split": split, "step": step, "epoch": step / 10, **(figures or {"loss": 1.0})}
