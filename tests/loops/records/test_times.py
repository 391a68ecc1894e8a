"""The seconds of a run by kind of work, over all of its processes."""

import types

import pytest

from loops.records import times as module
from loops.records.run import TIMES, read_json, write_json
from loops.records.times import Times


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def follow(clock, hook, events):
    trainer = types.SimpleNamespace(activity="starting")
    for seconds, event, activity in events:
        clock.seconds, trainer.activity = seconds, activity
        arguments = {
            "on_evaluate": (None, None),
            "on_end": (None,),
            "on_log": (None,),
        }.get(event, ())
        getattr(hook, event)(trainer, *arguments)


RUN = [
    (5, "on_start", "starting"),
    (6, "on_progress", "tracing the training step"),
    (10, "on_progress", "training"),
    (12, "on_progress", "training"),
    (20, "on_progress", "evaluating on the val split"),
    (23, "on_evaluate", "evaluating on the val split"),
    (24, "on_save", "training"),
]


def test_seconds_are_divided(tmp_path, clock):
    hook = Times(tmp_path, started=2.0, facts={"machine": "a"})
    follow(clock, hook, RUN)
    expected = {"start": 8.0, "training": 11.0, "evaluation": 3.0}
    found = read_json(tmp_path / TIMES)
    assert found == {"seconds": expected, "processes": 1, "machine": "a"}
    # Another process goes on.
    clock.seconds = 0.0
    hook = Times(tmp_path, started=0.0, facts={"machine": "b"})
    follow(clock, hook, [*RUN, (30, "on_end", "training")])
    expected = {"start": 18.0, "training": 28.0, "evaluation": 6.0}
    found = read_json(tmp_path / TIMES)
    assert found == {"seconds": expected, "processes": 2, "machine": "a; b"}


def test_pictures_and_the_result_are_part_of_the_sum(tmp_path, clock):
    hook = Times(tmp_path, started=2.0, facts={"commit": "a"})
    follow(clock, hook, [*RUN, (30, "on_end", "training")])
    clock.seconds = 34.0
    hook.finish()
    expected = {"start": 8.0, "training": 17.0, "evaluation": 3.0, "pictures": 4.0}
    assert read_json(tmp_path / TIMES)["seconds"] == expected
    assert sum(expected.values()) == 34.0 - 2.0
    # The file of an earlier version has no pictures, and a third process goes on from either.
    for before, pictures in (({"start": 1.0, "training": 2.0, "evaluation": 3.0}, 4.0), ({}, 8.0)):
        if before:
            write_json(tmp_path / TIMES, {"seconds": before, "processes": 1, "commit": "a; b"})
        hook = Times(tmp_path, started=2.0, facts={"commit": "a"})
        follow(clock, hook, [*RUN, (30, "on_end", "training")])
        clock.seconds = 34.0
        hook.finish()
        found = read_json(tmp_path / TIMES)
        assert found["seconds"]["pictures"] == pictures
        assert found["commit"] == "a; b"
    assert found["seconds"]["start"] == 1.0 + 8.0 + 8.0


def test_a_first_step_that_ends_an_epoch(tmp_path, clock):
    hook = Times(tmp_path, started=0.0, facts={})
    events = [
        (5, "on_progress", "tracing the training step"),
        (8, "on_log", "training"),
        (9, "on_progress", "evaluating on the val split"),
        (11, "on_evaluate", "evaluating on the val split"),
        (12, "on_progress", "training"),
        (13, "on_save", "training"),
    ]
    follow(clock, hook, events)
    expected = {"start": 8.0, "training": 3.0, "evaluation": 2.0}
    assert read_json(tmp_path / TIMES)["seconds"] == expected


def test_a_process_that_only_scores(tmp_path, clock):
    hook = Times(tmp_path, started=0.0, facts={})
    events = [
        (5, "on_start", "starting"),
        (7, "on_progress", "evaluating on the test split"),
        (9, "on_evaluate", "evaluating on the test split"),
        (10, "on_end", "evaluating on the test split"),
    ]
    follow(clock, hook, events)
    expected = {"start": 8.0, "training": 0.0, "evaluation": 2.0}
    assert read_json(tmp_path / TIMES)["seconds"] == expected


def test_only_the_chief_writes(tmp_path, clock):
    follow(clock, Times(tmp_path, started=0.0, facts={}, writes=False), RUN)
    assert list(tmp_path.iterdir()) == []
