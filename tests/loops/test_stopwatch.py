import math

from loops.stopwatch import Stopwatch


def test_speed_since_the_last_reset():
    watch = Stopwatch(global_batch_size=8)
    assert watch.timings == {}
    watch.add_steps(3, 2.0)
    watch.add_steps(5, 2.0, waited=1.0)
    assert watch.timings == {"images_per_second": 16.0, "waiting_for_data": 0.25}
    watch.reset()
    assert watch.timings == {}
    watch.add_steps(1, 4.0)
    assert watch.timings == {"images_per_second": 2.0, "waiting_for_data": 0.0}


def test_time_left_by_the_last_times():
    watch = Stopwatch(global_batch_size=8)
    assert math.isnan(watch.seconds_left(10, 2))
    watch.add_steps(4, 2.0)
    assert watch.seconds_left(10, 2) == 5.0
    watch.add_evaluation(3.0)
    assert watch.seconds_left(10, 2) == 11.0
    watch.add_steps(1, 2.0)
    assert watch.seconds_left(10, 2) == 26.0


def test_steps_in_some_seconds():
    watch = Stopwatch(global_batch_size=8)
    assert watch.steps_in(1.0) == 1
    watch.add_steps(20, 2.0)
    assert watch.steps_in(1.0) == 10
    assert watch.steps_in(0.0) == 1
