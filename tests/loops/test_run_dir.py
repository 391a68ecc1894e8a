import errno
import json
import math
import os

import pytest

from loops.errors import RunError
from loops.run_dir import (
    default_name,
    differences,
    locked,
    open_run,
    read_config,
    read_json,
    read_result,
    write_json,
)

CONFIG = {
    "flags": {"net": "inception10", "seed": 0, "num_gpus": 1},
    "data": {
        "name": "digits",
        "class_names": ["0", "1"],
        "image_shape": [8, 8, 1],
        "mean": [0.3],
        "std": [0.4],
        "examples": {"train": 10, "test": 2},
        "fingerprints": {"train": "0a", "test": "0b"},
    },
}


def changed(part, **changes):
    return {**CONFIG, part: CONFIG[part] | changes}


def test_a_new_run_is_made(tmp_path):
    run_dir = tmp_path / "runs" / "a"
    assert open_run(run_dir, CONFIG, free=()) is None
    assert read_config(run_dir) == CONFIG


def test_the_same_command_goes_on(tmp_path):
    open_run(tmp_path / "a", CONFIG, free=())
    assert open_run(tmp_path / "a", CONFIG, free=()) == CONFIG


def test_a_flag_that_differs_is_named(tmp_path):
    open_run(tmp_path / "a", CONFIG, free=())
    with pytest.raises(RunError, match="--seed is 1 here and 0 in the run"):
        open_run(tmp_path / "a", changed("flags", seed=1), free=())
    assert read_config(tmp_path / "a") == CONFIG


def test_data_that_differ_are_named(tmp_path):
    open_run(tmp_path / "a", CONFIG, free=())
    with pytest.raises(RunError, match="the data's class_names"):
        open_run(tmp_path / "a", changed("data", class_names=["0"]), free=())


def test_a_free_flag_may_differ(tmp_path):
    open_run(tmp_path / "a", CONFIG, free=())
    assert open_run(tmp_path / "a", changed("flags", num_gpus=2), free=("num_gpus",)) == CONFIG


def test_flags_that_only_one_side_has_differ():
    assert differences(CONFIG, changed("flags", new=1), free=()) == [
        "--new is 1 here and None in the run"
    ]


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(RunError, match="not a run directory, and not empty"):
        open_run(tmp_path, CONFIG, free=())
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(RunError, match="cannot make"):
        open_run(tmp_path / "a", CONFIG, free=())


def test_an_empty_directory_becomes_a_run(tmp_path):
    assert open_run(tmp_path, CONFIG, free=()) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "half of"])
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"cannot read .*config\.json"):
        read_config(tmp_path)


def test_what_is_not_a_run_says_so(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"flags": 3}')
    with pytest.raises(RunError, match="has no flags and data"):
        read_config(tmp_path / "other")
    with pytest.raises(RunError, match=r"has no config\.json"):
        read_config(tmp_path)
    with pytest.raises(RunError, match="is not a directory"):
        read_config(tmp_path / "typo")


def test_names_come_from_the_configuration():
    name = default_name(CONFIG)
    assert name.startswith("inception10-digits-")
    assert default_name(json.loads(json.dumps(CONFIG))) == name
    assert default_name(changed("flags", seed=1)) != name
    assert default_name(changed("data", class_names=["a", "b"])) != name


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(RunError, match="cannot write"):
        write_json(tmp_path / "no" / "a.json", {})


def test_a_start_that_failed_can_be_repeated(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", full)
        with pytest.raises(RunError, match="No space left"):
            open_run(tmp_path / "a", CONFIG, free=())
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "a" / "config.json.new").write_text("{")
    assert open_run(tmp_path / "a", CONFIG, free=()) is None


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    run_dir = tmp_path / "run"
    with locked(run_dir):
        assert open_run(run_dir, CONFIG, free=()) is None
        wanted = rf"run is in use: process {os.getpid()} on \S+ trains in it\. Wait"
        with pytest.raises(RunError, match=wanted), locked(run_dir):
            pass
    with locked(run_dir):
        assert open_run(run_dir, CONFIG, free=()) == CONFIG


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        pass


def test_where_no_lock_can_be_the_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"cannot write .*file/run/lock"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_figures_that_are_not_finite_are_json(tmp_path):
    write_json(tmp_path / "a.json", {"loss": float("nan"), "per": {"x": float("inf"), "y": 1.0}})
    assert read_json(tmp_path / "a.json") == {"loss": None, "per": {"x": None, "y": 1.0}}


def test_results(tmp_path):
    assert read_result(tmp_path) is None
    write_json(tmp_path / "result.json", {})
    with pytest.raises(RunError, match="is not a result"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("class_names", []),
        ("class_names", ["0", "0"]),
        ("class_names", ["0", 1]),
        ("image_shape", [8, 8]),
        ("image_shape", [8, 8, 0]),
        ("image_shape", [8, 8, True]),
        ("mean", [0.1, 0.2]),
        ("mean", [float("nan")]),
        ("std", [0]),
        ("std", "1"),
        ("examples", {"train": 10, "test": -2}),
        ("examples", {"train": 10}),
        ("fingerprints", {"train": "0a", "test": 7}),
    ],
)
def test_a_wrong_field_is_named(tmp_path, field, value):
    (tmp_path / "config.json").write_text(json.dumps(changed("data", **{field: value})))
    with pytest.raises(RunError, match=rf"config\.json: data\.{field} is not"):
        read_config(tmp_path)


def test_a_result_with_a_loss_that_is_not_finite(tmp_path):
    result = {
        "top_1_accuracy": 0.1, "top_5_accuracy": 0.5, "loss": float("nan"), "examples": 9,
        "step": 3, "selected_on": None,
    }  # fmt: skip
    write_json(tmp_path / "result.json", result)
    assert math.isnan(read_result(tmp_path)["loss"])
    write_json(tmp_path / "result.json", {**result, "top_1_accuracy": "0.1"})
    with pytest.raises(RunError, match="top_1_accuracy is wrong"):
        read_result(tmp_path)
