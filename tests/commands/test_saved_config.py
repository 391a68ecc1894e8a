"""`config.json` and `result.json`: what is written is read again, and damage is one line."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from commands.config import Config
from commands.saved_config import (
    Code,
    DataInfo,
    SavedConfig,
    read_config,
    read_result,
    write_config,
)
from commands.setting import ConfigError
from loops.errors import RunError, SaveError
from tests.conftest import ROOT

SETTINGS = Config(
    net="resnet18", stem="small", batch_norm_momentum=0.95, dataset="digits", image_size=8,
    augment="crop:1", label_smoothing=0.0, learning_rate=0.2, weight_decay=5e-4, warmup_epochs=1.0,
    step_epochs=(1.0, 2.5), hooks=("stage_norms",), eval_crop=1.0,
)  # fmt: skip
INFO = DataInfo(
    name="digits",
    class_names=("zéro", "one"),
    image_shape=(8, 8, 1),
    mean=(0.3,),
    std=(0.4,),
    examples={"train": 90, "val": 10, "test": 20},
    fingerprints={"train": "01234567", "val": "89abcdef", "test": "00000000"},
)
SAVED = SavedConfig(
    settings=SETTINGS,
    data=INFO,
    workers=2,
    init_fingerprint="0123abcd",
    code=(
        Code(from_step=0, net="abc", versions={"keras": "3.15"}),
        Code(from_step=70, net="abd", versions={"keras": "3.16"}),
    ),
)
RESULT = {
    "split": "test", "loss": 0.5, "top_1_accuracy": 0.75, "top_5_accuracy": 1.0,
    "per_class": {"zéro": 0.5, "one": None}, "examples": 20, "checkpoint": "best/step-70",
    "step": 70, "selected_on": "val",
}  # fmt: skip


def put(directory, content, name="config.json"):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (directory / name).write_bytes(text)
    return directory


def saved(**changes):
    """The content of a `config.json`, in which fields of {"group__field": value} are changed."""
    content = json.loads(json.dumps(dataclasses.asdict(SAVED)))
    for place, value in changes.items():
        *groups, field = place.split("__")
        part = content
        for group in groups:
            part = part[group]
        part[field] = value
    return content


def test_what_is_written_is_read_again(tmp_path):
    write_config(tmp_path, SAVED)
    found = read_config(tmp_path)
    assert found == SAVED
    assert type(found.settings) is Config
    assert os.listdir(tmp_path) == ["config.json"]
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert content == saved()
    assert list(content) == ["settings", "data", "workers", "init_fingerprint", "code"]


def test_a_file_from_before_there_were_some_settings(tmp_path):
    content = saved()
    for name in ("loss", "ema_decay", "hooks", "eval_crop"):
        del content["settings"][name]
    for name in ("workers", "init_fingerprint", "code"):
        del content[name]
    found = read_config(put(tmp_path, content))
    assert found.settings == dataclasses.replace(SETTINGS, hooks=())
    assert (found.workers, found.init_fingerprint, found.code) == (1, None, ())


def test_a_file_that_cannot_be_written_names_it_and_leaves_the_old_one(tmp_path):
    write_config(tmp_path, SAVED)
    before = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json.new").mkdir()
    with pytest.raises(SaveError, match=r"config\.json"):
        write_config(tmp_path, dataclasses.replace(SAVED, workers=1))
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_is_no_run_directory(tmp_path):
    for path, message in (
        (tmp_path, "it has no config.json"),
        (tmp_path / "missing", "it is not a directory"),
        (put(tmp_path, b"", "file") / "file", "it is not a directory"),
    ):
        with pytest.raises(RunError, match=message):
            read_config(path)


def refused(directory, content, error=(ConfigError, RunError)):
    with pytest.raises(error) as caught:
        read_config(put(directory, content))
    line = str(caught.value)
    assert str(directory / "config.json") in line
    assert len(line.splitlines()) == 1
    return line


NAN = math.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Settings: the messages themselves are tested with the configuration.
        ({"settings__batch_size": 0}, "--batch_size=0: expected an integer (>= 1, <= 1000000)"),
        ({"settings__batch_size": True}, "--batch_size=True: expected an integer"),
        ({"settings__epochs": NAN}, "--epochs=nan: expected a number (> 0, <= 1000000)"),
        ({"settings__seed": 10**400}, "expected an integer (>= 0, < 4294967296)"),
        ({"settings__step_epochs": [15, True]}, "--step_epochs=15, True: expected a list"),
        ({"settings__net": "\ud800"}, "--net: expected text in UTF-8 without NUL"),
        ({"settings__unheard_of": 1}, "there is no setting 'unheard_of'"),
        ({"settings__run_dir": "x"}, "there is no setting 'run_dir'"),
        ({"settings__data_dir": "~nobody-of-that-name"}, "there is no such home directory"),
        ({"settings__image_size": 9}, "--image_size=9, but data.image_shape is (8, 8, 1)"),
        *(
            ({f"settings__{field.name}": None}, f"--{field.name} has no value")
            for field in dataclasses.fields(Config)
            if field.metadata["derived"]
        ),
        ({"settings": []}, "no settings"),
        ({"settings": None}, "no settings"),
        # Data.
        ({"data": None}, "data"),
        ({"data": []}, "data"),
        ({"data": {}}, "data"),
        ({"data__name": ""}, "data.name"),
        ({"data__name": 3}, "data.name"),
        ({"data__class_names": []}, "data.class_names"),
        ({"data__class_names": ["a", ""]}, "data.class_names"),
        ({"data__class_names": ["a", 1]}, "data.class_names"),
        ({"data__class_names": ["a", "a"]}, "class_names holds a name twice"),
        ({"data__image_shape": [8, 8]}, "data.image_shape"),
        ({"data__image_shape": [8, 8, 1.0]}, "data.image_shape"),
        ({"data__image_shape": [8, 0, 1]}, "data.image_shape"),
        ({"data__image_shape": [8, True, 1]}, "data.image_shape"),
        ({"data__image_shape": [8, 10**30, 1]}, "data.image_shape"),
        ({"data__image_shape": [8, 4, 1]}, "but data.image_shape is (8, 4, 1)"),
        ({"data__mean": []}, "mean and std must be 1 number"),
        ({"data__mean": [0.1, 0.2]}, "mean and std must be 1 number"),
        ({"data__mean": [NAN]}, "data.mean"),
        ({"data__mean": [math.inf]}, "data.mean"),
        ({"data__mean": ["0.1"]}, "data.mean"),
        ({"data__mean": 0.1}, "data.mean"),
        ({"data__std": [0]}, "std above 0"),
        ({"data__std": [-1]}, "std above 0"),
        ({"data__std": [10**400]}, "data.std"),
        ({"data__examples": []}, "data.examples"),
        ({"data__examples": {"train": 90}}, "need train and test"),
        ({"data__examples__test": 0}, "data.examples"),
        ({"data__examples__test": True}, "data.examples"),
        ({"data__examples__test": 10**30}, "data.examples"),
        ({"data__examples__trane": 1}, "data.examples"),
        ({"data__fingerprints": {}}, "need train and test"),
        ({"data__fingerprints__val": ""}, "data.fingerprints"),
        ({"data__fingerprints__val": 1}, "data.fingerprints"),
        ({"data__examples": {"train": 90, "test": 20}}, "splits"),
        # The rest.
        ({"workers": 0}, "workers"),
        ({"workers": True}, "workers"),
        ({"workers": None}, "workers"),
        ({"workers": "\ud800"}, r"'\ud800' is not text in UTF-8"),
        ({"data__examples__\udcff": 1}, r"'\udcff' is not text in UTF-8"),
        ({"init_fingerprint": 7}, "init_fingerprint"),
        ({"code": {}}, "code"),
        ({"code": [{}]}, "code"),
        ({"code": [{"from_step": -1, "net": "x", "versions": {}}]}, "code"),
        ({"code": [{"from_step": 0, "net": "", "versions": {}}]}, "code"),
        ({"code": [{"from_step": 0, "net": "x", "versions": {"keras": 3}}]}, "code"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, message):
    assert message in refused(tmp_path, saved(**changes))


@pytest.mark.parametrize("field", ["settings", "data"])
def test_a_missing_group_is_named(tmp_path, field):
    content = saved()
    del content[field]
    assert field in refused(tmp_path, content)


def test_a_missing_field_of_the_data_is_named(tmp_path):
    for field in dataclasses.fields(DataInfo):
        content = saved()
        del content["data"][field.name]
        assert field.name in refused(tmp_path, content)


TEXTS = (
    b"", b" \n", b"null", b"[]", b"3", b'"x"', b"NaN", b"{'settings': {}}", b"\x00" * 100,
    b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, "☃".encode("utf-16"),
    json.dumps(saved()).encode()[:-1],
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:12]))
def test_text_that_is_no_json_object(tmp_path, text):
    assert "cannot read" in refused(tmp_path, text, RunError)
    put(tmp_path, text, "result.json")
    with pytest.raises(RunError, match=r"cannot read .*result\.json") as caught:
        read_result(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


METRICS = ("top_1_accuracy", "top_5_accuracy", "added_later")


def test_a_result(tmp_path):
    assert read_result(tmp_path) is None
    assert read_result(put(tmp_path, RESULT, "result.json"), METRICS) == RESULT


def test_a_result_that_is_no_number(tmp_path):
    """JSON has no NaN; a run that diverged has."""
    content = {**RESULT, "loss": None, "top_5_accuracy": None}
    found = read_result(put(tmp_path, content, "result.json"), METRICS)
    assert math.isnan(found["loss"])
    assert math.isnan(found["top_5_accuracy"])
    assert found["per_class"]["one"] is None


def test_a_result_of_a_run_without_validation(tmp_path):
    content = {**RESULT, "selected_on": None}
    assert read_result(put(tmp_path, content, "result.json"), METRICS) == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: ...}, name)
            for name in ("loss", "examples", "step", "checkpoint", "selected_on")
        ),
        *(({name: "x"}, name) for name in ("loss", "examples", "step", "selected_on")),
        ({"loss": True}, "loss"),
        ({"loss": [0.5]}, "loss"),
        ({"loss": 10**400}, "loss"),
        ({"top_1_accuracy": "0.75"}, "top_1_accuracy"),
        ({"top_1_accuracy": True}, "top_1_accuracy"),
        ({"top_5_accuracy": 10**400}, "top_5_accuracy"),
        ({"examples": 0}, "examples"),
        ({"examples": 1.5}, "examples"),
        ({"examples": NAN}, "examples"),
        ({"step": -1}, "step"),
        ({"step": None}, "step"),
        ({"step": True}, "step"),
        ({"checkpoint": None}, "checkpoint"),
        ({"selected_on": "test"}, "selected_on"),
    ],
)
def test_a_damaged_result_is_one_line_that_names_the_field(tmp_path, changes, message):
    content = {key: x for key, x in {**RESULT, **changes}.items() if x is not ...}
    with pytest.raises(RunError, match="remove it to have the run scored again") as caught:
        read_result(put(tmp_path, content, "result.json"), METRICS)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'result.json'} is not a result (")
    missing = message in changes and changes[message] is ...
    assert (f"required field {message})" if missing else f"({message}: ") in line
    assert len(line.splitlines()) == 1


LOCALES = """
import pathlib, sys, types
sys.modules["tensorflow"] = types.ModuleType("tensorflow")  # Not needed here, and slow.
from commands.saved_config import read_config, write_config
directory = pathlib.Path(sys.argv[1])
config = read_config(directory)
assert config.data.class_names == ("z\\u00e9ro", "one"), config.data.class_names
write_config(directory, config)
"""


def test_class_names_survive_a_locale_that_is_not_utf_8(tmp_path):
    write_config(tmp_path, SAVED)
    before = (tmp_path / "config.json").read_bytes()
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", LOCALES, str(tmp_path)],
        cwd=ROOT, env={**os.environ, **locale}, check=True,
    )  # fmt: skip
    assert (tmp_path / "config.json").read_bytes() == before
    assert read_config(pathlib.Path(tmp_path)) == SAVED
