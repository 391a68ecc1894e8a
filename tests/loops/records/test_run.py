import errno
import fcntl
import math
import os
import threading

import pytest

from loops.errors import RunError, SaveError, printable
from loops.records.run import check_is_free, is_locked, locked, read_json, write_json


def test_json_is_written_completely_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(SaveError, match=r"cannot write .*a\.json: No such file or directory"):
        write_json(tmp_path / "no" / "a.json", {})


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(SaveError, match="No space left on device"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_figures_that_are_not_finite_become_null(tmp_path):
    figures = {"loss": math.nan, "of": {"x": math.inf, "y": 1.0}, "each": [0.5, -math.inf]}
    write_json(tmp_path / "a.json", figures)
    expected = {"loss": None, "of": {"x": None, "y": 1.0}, "each": [0.5, None]}
    assert read_json(tmp_path / "a.json") == expected


@pytest.mark.parametrize("name", ["größe", "写真", "\udcff"])
def test_any_text_comes_back(tmp_path, name):
    write_json(tmp_path / "a.json", {"classes": [name]})
    assert read_json(tmp_path / "a.json") == {"classes": [name]}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .*config\.json: .") as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"typo\.json: No such file or directory"):
        read_json(tmp_path / "typo.json")


def test_a_message_is_one_line_whatever_the_path():
    assert str(RunError("cannot read a\nb\u2028\udcff\x1b: é 写")) == (
        r"cannot read a\nb\u2028\udcff\x1b: é 写"
    )
    assert printable("a b\xa0c") == "a b\xa0c"


def test_a_second_process_is_refused_while_the_first_lives(tmp_path, monkeypatch):
    monkeypatch.setattr("loops.records.run._LOCK_SECONDS", 0.1)
    run_dir = tmp_path / "run"
    assert is_locked(run_dir) is False
    with locked(run_dir):
        assert is_locked(run_dir) is True
        wanted = rf"run is in use: process {os.getpid()} on \S+ trains in it\. Wait"
        for _ in range(2):  # The first refusal leaves the name of the process.
            with pytest.raises(RunError, match=wanted), locked(run_dir):
                pass
        assert is_locked(run_dir) is True
    assert is_locked(run_dir) is False
    with locked(run_dir):
        pass


def test_a_look_at_the_lock_does_not_keep_a_run_from_starting(tmp_path):
    with (tmp_path / "lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        timer = threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN))
        timer.start()
        with locked(tmp_path):
            assert not timer.is_alive()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch, number):
    def refuse(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run") is None


def test_where_no_lock_can_be_made_the_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"cannot write .*file/run/lock: Not a directory"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_directory_that_is_absent_or_empty_is_free(tmp_path):
    check_is_free(tmp_path / "runs" / "a")
    check_is_free(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_a_failed_start_leaves_is_free(tmp_path):
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "config.json.new").write_text("{")
        (tmp_path / "a" / "checkpoints").mkdir()
        (tmp_path / "a" / "best").mkdir()
        check_is_free(tmp_path / "a")
        (tmp_path / "a" / "best" / "step-1.index").touch()
        with pytest.raises(RunError, match="not a run directory, and not empty"):
            check_is_free(tmp_path / "a")


@pytest.mark.parametrize("name", ["thesis.txt", "config.json", "checkpoints", ".git"])
def test_a_directory_of_something_else_is_not_free(tmp_path, name):
    (tmp_path / name).write_text("all my work")
    with pytest.raises(RunError, match="not a run directory, and not empty"):
        check_is_free(tmp_path)
    assert (tmp_path / name).read_text() == "all my work"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(RunError, match=r"cannot use .*/a: Not a directory"):
        check_is_free(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"cannot use .*/b: No such file or directory"):
        check_is_free(tmp_path / "b")


@pytest.mark.parametrize("inside", ["best", "checkpoints/x", "a/b", "../link/c"])
def test_a_directory_inside_another_run_is_not_free(tmp_path, inside):
    run_dir = tmp_path / "lr1"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.json").write_text("{}")
    (run_dir / "best").mkdir()
    (tmp_path / "link").symlink_to(run_dir)
    with pytest.raises(RunError, match=f"is inside the run {run_dir}; use another --run_dir"):
        check_is_free(run_dir / inside)
    check_is_free(tmp_path / "lr2")
