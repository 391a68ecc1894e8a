"""Profiles: of which steps, where they are, and what is printed."""

import pytest
import tensorflow as tf

from loops.errors import SaveError
from loops.profiling import Profile
from tests.loops.helpers import full_disk
from tests.loops.records.fakes import FakePlan, FakeTrainer
from tests.loops.training import make_trainer


@pytest.mark.slow
def test_a_profile_is_where_the_plugin_finds_it(one_replica, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    lines = []
    run_dir = tmp_path / "run"
    make_trainer(one_replica, run_dir, Profile(4, 6, say=lines.append)).run()
    (path,) = (run_dir / "plugins" / "profile").iterdir()
    assert lines == [f"profile  steps 4 to 6, in {path}"]
    assert [file.name[-10:] for file in path.iterdir()] == [".xplane.pb"]
    assert not list(run_dir.glob("*tfevents*"))
    # AutoGraph's source files are deleted when the process ends.
    left = [file.name for file in (tmp_path / "temporary").iterdir()]
    assert not [name for name in left if not name.startswith("__autograph_generated_file")]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the profiler, which is replaced."""
    calls = []

    def start(directory):
        calls.append("start")
        path = f"{directory}/plugins/profile/now"
        tf.io.gfile.makedirs(path)
        tf.io.write_file(f"{path}/host.xplane.pb", "x" * 100)

    monkeypatch.setattr(tf.profiler.experimental, "start", start)
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    return calls


def train(run_dir, start, profile, steps=33):
    """The steps at which the profiler is called; as a trainer would that starts at a step."""
    trainer = FakeTrainer(start, plan=FakePlan())
    trainer.run_dir = run_dir
    profile.on_start(trainer)
    while (step := profile.next_step(trainer.step)) is not None and step <= steps:
        trainer.step = step
        profile.on_step(trainer)
    profile.on_end(trainer, None)


@pytest.mark.parametrize(
    ("start", "first", "last", "expected"),
    [
        (0, 10, 20, "steps 10 to 20"),
        (0, 1, 1, "steps 1 to 1"),
        (15, 10, 20, "steps 16 to 20"),  # Resumed in between.
        (9, 10, 20, "steps 10 to 20"),
        (0, 30, 40, "steps 30 to the last"),
    ],
)
def test_steps_of_a_profile(tmp_path, calls, start, first, last, expected):
    lines = []
    train(tmp_path, start, Profile(first, last, say=lines.append))
    assert lines == [f"profile  {expected}, in {tmp_path}/plugins/profile/now"]
    assert calls == ["start", "stop"]


@pytest.mark.parametrize(
    ("start", "first", "last", "line"),
    [
        (20, 10, 20, "profile  none: the run is already at step 20"),
        (0, 40, 50, "profile  none: the run has 33 steps only"),
    ],
)
def test_steps_that_are_not_there(tmp_path, calls, start, first, last, line):
    lines = []
    train(tmp_path, start, Profile(first, last, say=lines.append))
    assert (lines, calls) == ([line], [])


def test_going_back_profiles_once(tmp_path, calls):
    """To before the steps, behind them, or between them."""
    lines = []
    profile = Profile(10, 20, say=lines.append)
    trainer = FakeTrainer(9, plan=FakePlan())
    trainer.run_dir = tmp_path
    for step in (9, 15, 5):
        trainer.step = step
        profile.on_start(trainer)
    for step in (9, 20, 9, 20):
        trainer.step = step
        profile.on_step(trainer)
    profile.on_start(trainer)
    assert (len(lines), calls) == (1, ["start", "stop"])


def test_a_worker_that_is_not_the_chief_only_stops_at_the_same_steps(tmp_path, calls):
    profile = Profile(10, 20, writes=False)
    assert [profile.next_step(step) for step in (0, 8, 9, 19, 20)] == [9, 9, 20, 20, None]
    train(tmp_path, 0, profile)
    assert calls == []


def test_a_profile_that_cannot_be_written(tmp_path, calls):
    profile = Profile(1, 2)
    trainer = FakeTrainer(0, plan=FakePlan())
    trainer.run_dir = tmp_path
    profile.on_start(trainer)
    trainer.step = 2
    with full_disk(10), pytest.raises(SaveError, match=f"cannot write {tmp_path}/plugins/profile"):
        profile.on_step(trainer)
    assert not list((tmp_path / "plugins" / "profile").iterdir())
