"""When a loss is reported as a spike."""

import math

import pytest

from loops.interrupt import Interrupted
from loops.records.metrics_log import MetricsLog
from loops.spikes import Spikes, is_reported
from tests.loops.helpers import Batches, examples
from tests.loops.training import TRAINING, At, make_trainer

STEADY = [1.0, 2.0] * 5


@pytest.mark.parametrize(
    ("highest", "reported"),
    [
        ([*STEADY, 6.1], True),
        ([*STEADY, 6.0], False),  # Not more than three times the highest of ten.
        ([9.0, *STEADY, 6.1], True),  # Which was eleven rows ago.
        ([*STEADY[1:], 6.1], False),  # In the first ten rows there is no recent level.
        ([*STEADY, math.nan], False),
        ([*STEADY, math.inf], False),
        ([*STEADY[1:], math.nan, 6.1], True),
        ([math.nan] * 10 + [6.1], False),
        ([*STEADY, 6.1, 18.4], False),  # The one before was reported.
        ([*STEADY, 6.1, *STEADY[1:], 18.4], False),  # Ten rows before.
        ([*STEADY, 6.1, *STEADY, 6.1], True),  # Eleven rows before.
    ],
)
def test_what_is_reported(highest, reported):
    assert is_reported(highest) == reported


class Loud(Batches):
    """Batches of which one is far from the others."""

    def _batch(self, number):
        images, labels = examples(self.size, seed=100 + number)
        return images * (1000 if number == 11 else 1), labels


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_names_the_step_and_the_command(one_replica, tmp_path, stopped):
    """Also if it was resumed since the ten rows before."""
    said = []

    def trainer(*hooks):
        log = MetricsLog(tmp_path, writes=False)
        hooks = (*hooks, log, Spikes(log, said.append))
        return make_trainer(one_replica, tmp_path, *hooks, batches=Loud(), log_steps=1)

    if stopped:
        with pytest.raises(Interrupted):
            trainer(At(TRAINING, 10)).run()
    trainer().run()
    (line,) = said
    assert " at step 12, more than 3 times the highest of the 10 rows before; " in line
    assert line.endswith(f"python replay.py --run_dir={tmp_path} --step=12")
