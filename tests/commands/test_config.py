"""The typed configuration: its fields, its check, the name of a run, the comparison on resume."""

import dataclasses
import math
import typing

import msgspec
import pytest

from commands import config
from commands.config import Config, differences, digest, setting
from commands.options import (
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ReplayOptions,
    TrainOptions,
)
from commands.setting import ConfigError, accepted, convert, kind_of, text

CLASSES = (
    Config, TrainOptions, EvaluateOptions, PredictOptions, ExportOptions, CompareOptions,
    ReplayOptions,
)  # fmt: skip
FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# Another value for each setting of a run.
OTHER = {
    "net": "resnet18", "stem": "small", "auxiliary": False, "batch_norm_momentum": 0.95,
    "sync_batch_norm": True, "init_from": "keras", "dataset": "digits", "data_dir": "/data",
    "image_size": 64, "val_fraction": 0.2, "augment": "flip", "bad_images": "skip", "seed": 1,
    "eval_crop": 0.9,
    "sampling": "balanced", "patience": 3.0, "class_weights": "balanced",
    "histogram_steps": 100, "picture_epochs": 5,
    "epochs": 2.0, "batch_size": 64, "accumulation": 2, "loss": "focal", "label_smoothing": 0.1,
    "optimizer": "adamw", "learning_rate": 0.1, "head_learning_rate": 0.3, "freeze": ("stem",),
    "momentum": 0.5, "weight_decay": 0.1,
    "schedule": "step", "warmup_epochs": 2.0, "step_epochs": (5.0,), "step_factor": 0.2,
    "clip_norm": 1.0, "ema_decay": 0.999, "num_gpus": 2, "device": "cpu",
    "precision": "mixed_bfloat16", "jit": True, "deterministic": True, "log_steps": 10,
    "eval_epochs": 2, "best_metric": "loss", "save_minutes": 1.0, "keep_checkpoints": 2,
    "whiten": True, "identity": True, "bias_learning_rate": 2.0, "lookahead_steps": 5,
    "train_sizes": ("20:0.5",), "tta": ("flip",),
    "hooks": ("stage_norms",), "on_nan": "skip", "on_save_error": "continue",
}  # fmt: skip
DATA = {"train": "0123abcd", "test": "89abcdef"}


def changed(**values):
    return dataclasses.replace(Config(), **values)


def refusal(cls=Config, where="run/config.json", **values):
    """The line with which values are refused."""
    with pytest.raises(ConfigError) as caught:
        convert(values, cls, where)
    line = str(caught.value)
    assert line.startswith(f"{where}: " if where else "--")
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_described_and_its_default_is_accepted(cls):
    for field in dataclasses.fields(cls):
        assert field.metadata["help"].endswith("."), field.name
        assert field.kw_only
        assert accepted(field)
    # msgspec does not check defaults: give each of them.
    defaults = dataclasses.asdict(cls())
    assert convert(defaults, cls) == cls() == convert({}, cls)


def test_a_configuration_is_frozen():
    for cls in CLASSES:
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().num_gpus = 2


def test_the_groups_of_settings_follow_each_other():
    groups = Config.__bases__[::-1]
    assert [field.name for group in groups for field in dataclasses.fields(group)] == list(FIELDS)
    assert next(iter(FIELDS)) == "net"


def test_options_hold_the_settings():
    options = TrainOptions(epochs=2.0, net="resnet18", run_dir="x", describe=True)
    assert type(options.config) is Config
    assert options.config == Config(epochs=2.0, net="resnet18")


def test_the_other_values_are_of_every_field():
    assert OTHER.keys() == FIELDS.keys()
    assert convert(OTHER, Config) == Config(**OTHER)
    assert all(OTHER[name] != field.default for name, field in FIELDS.items())


def test_a_number_that_is_whole_may_stand_for_a_float():
    found = convert({"epochs": 2, "step_epochs": [1, 2.5], "clip_norm": 0}, Config)
    assert (found.epochs, found.step_epochs, found.clip_norm) == (2.0, (1.0, 2.5), 0.0)
    assert [type(x) for x in (found.epochs, *found.step_epochs)] == [float] * 3


NOT = {  # Values that no field of a type accepts.
    int: (
        True,
        1.0,
        1.5,
        "64",
        "\ud800",
        [],
        {},
        [1],
        10**30,
        -(10**400),
        10**400,
        math.nan,
        math.inf,
    ),
    float: (
        True,
        "1",
        "\udcff",
        [],
        {},
        [1.0],
        10**400,
        -(10**400),
        math.nan,
        math.inf,
        -math.inf,
        1e300,
    ),
    bool: (0, 1, 1.0, "true", "", [], {}),
    str: (0, True, 1.5, [], {}, ["x"], "", "a\0b", "\ud800", "\udcff"),
}


def wrong_values(field):
    kind = kind_of(field)
    found = [] if typing.get_origin(field.type) in (typing.Union, type(int | None)) else [None]
    if typing.get_origin(kind) is tuple:
        items = wrong_values_of(typing.get_args(kind)[0])
        if field.metadata["positional"]:  # Can be the name of a file that is not in UTF-8.
            items.remove("\udcff")
        return [*found, 0, True, "15", {}, *([item] for item in items)]
    return [*found, *wrong_values_of(kind)]


def wrong_values_of(kind):
    if typing.get_origin(kind) is typing.Literal:
        return [*NOT[str], *(choice.upper() for choice in typing.get_args(kind))]
    found = list(NOT[getattr(kind, "__origin__", kind)])
    for meta in getattr(kind, "__metadata__", ()):
        for name, beyond in (("gt", 0), ("ge", -1), ("lt", 0), ("le", 1)):
            if getattr(meta, name) is not None:
                found.append(getattr(meta, name) + beyond)
    return found


@pytest.mark.parametrize("cls", CLASSES)
def test_wrong_values_are_refused_with_name_value_and_what_is_accepted(cls):
    tried = 0
    for field in dataclasses.fields(cls):
        for value in wrong_values(field):
            line = refusal(cls, **{field.name: value})
            assert f"--{field.name}" in line, (field.name, value)
            assert accepted(field) in line or "text in UTF-8 without NUL" in line, line
            if isinstance(value, bool | float | None):
                assert f"--{field.name}={value}:" in line
            assert len(line) < 400
            tried += 1
    assert tried > 80


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "--batch_size=0: expected an integer (>= 1, <= 1000000)"),
        ({"batch_size": "64"}, "--batch_size='64': expected an integer (>= 1, <= 1000000)"),
        ({"seed": 2**32}, "--seed=4294967296: expected an integer (>= 0, < 4294967296)"),
        ({"epochs": math.nan}, "--epochs=nan: expected a number (> 0, <= 1000000)"),
        ({"momentum": 1}, "--momentum=1: expected a number (>= 0, < 1)"),
        ({"jit": 1}, "--jit=1: expected true or false"),
        ({"device": "tpu"}, "--device='tpu': expected one of auto, cpu, gpu"),
        ({"stem": "huge"}, "--stem='huge': expected one of small, large"),
        ({"step_epochs": [1, 0]}, "=1, 0: expected a list of numbers (> 0, <= 1000000)"),
        ({"hooks": [""]}, "--hooks='': expected a list of names"),
        ({"net": ""}, "--net='': expected text, not empty"),
        ({"net": "a\0b"}, "--net: expected text in UTF-8 without NUL"),
        ({"unheard_of": 1}, "there is no setting 'unheard_of'"),
        ({"run_dir": "x"}, "there is no setting 'run_dir'"),
        ({"\udcff": 1}, r"there is no setting '\udcff'"),
        ({"data_dir": "~nobody-of-that-name/x"}, "there is no such home directory"),
    ],
)
def test_messages(values, message):
    assert refusal(**values).removeprefix("run/config.json: ").endswith(message)


def test_a_home_directory_that_cannot_be_found_is_one_line(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    paths = [
        (cls, field.name)
        for cls in CLASSES
        for field in dataclasses.fields(cls)
        if field.metadata["path"]
    ]
    assert {name for _, name in paths} == {
        "init_from", "data_dir", "run_dir", "checkpoint", "json", "pictures", "grad_cam",
        "weights_txt", "chart", "examples", "picture",
    }  # fmt: skip
    for cls, name in paths:
        line = refusal(cls, where="", **{name: "~/somewhere"})
        assert line == f"--{name}=~/somewhere: there is no such home directory"
        convert({name: "./~"}, cls)
    assert convert({"net": "~"}, Config).net == "~"  # Not a path.


def test_the_digest_is_of_what_differs_from_the_defaults():
    # Pinned: other values would rename every run that people have.
    assert digest(Config(), DATA) == "4da6f7"
    assert digest(changed(net="resnet18", epochs=2.0, step_epochs=(5.0,)), DATA) == "f63b09"


def test_a_changed_value_changes_the_digest_if_it_names_the_run():
    plain = digest(Config(), DATA)
    found = {name: digest(changed(**{name: value}), DATA) for name, value in OTHER.items()}
    naming = {name for name, field in FIELDS.items() if field.metadata["names_run"]}
    assert {name for name, value in found.items() if value != plain} == naming
    assert FIELDS.keys() - naming == {
        "data_dir", "save_minutes", "keep_checkpoints", "hooks", "on_nan", "on_save_error",
        "histogram_steps", "picture_epochs",
    }  # fmt: skip
    names = [found[name] for name in naming]
    assert len(set(names)) == len(names)


def test_other_data_change_the_digest():
    assert digest(Config(), {**DATA, "train": "0123abce"}) != digest(Config(), DATA)


def test_a_default_that_is_given_does_not_change_the_digest():
    given = {name: field.default for name, field in FIELDS.items()}
    assert digest(convert(given, Config), DATA) == digest(Config(), DATA)
    # As a notebook may have it.
    assert digest(Config(epochs=2, step_epochs=[5]), DATA) == digest(
        Config(epochs=2.0, step_epochs=(5.0,)), DATA
    )


def test_a_setting_that_is_added_renames_no_run(monkeypatch):
    """And a file that was written before it gets its default."""
    before = [digest(Config(), DATA), digest(Config(**OTHER), DATA)]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(Config):
        """A configuration with one more setting."""

        dropout: float = setting(0.5, "Dropout.")

    monkeypatch.setattr(config, "Config", Later)
    assert [digest(Later(), DATA), digest(Later(**OTHER), DATA)] == before
    assert digest(Later(dropout=0.1), DATA) not in before
    assert convert(OTHER, Later) == Later(**OTHER, dropout=0.5)
    assert differences(convert({}, Later), Later(dropout=0.1)) == [
        "--dropout is 0.1 here and 0.5 in the run"
    ]


def test_values_are_printed_as_in_flags():
    values = (True, 0.1234567, 30.0, (1.0, 2.5), ("stem", "stage_1"), (), None, "flip")
    printed = ["true", "0.1234567", "30", "1,2.5", "stem,stage_1", "none", "none", "flip"]
    assert [text(value) for value in values] == printed


def test_the_differences_are_the_settings_that_differ_and_may_not():
    for name, value in OTHER.items():
        default = FIELDS[name].default
        phrase = f"--{name} is {text(value)} here and {text(default)} in the run"
        expected = [] if FIELDS[name].metadata["may_change"] else [phrase]
        assert differences(Config(), changed(**{name: value})) == expected
    fixed = [name for name, field in FIELDS.items() if not field.metadata["may_change"]]
    found = differences(Config(), Config(**OTHER))
    assert [phrase.split()[0] for phrase in found] == [f"--{name}" for name in fixed]
    assert differences(Config(**OTHER), Config(**OTHER)) == []
    assert FIELDS.keys() - set(fixed) == {
        "data_dir", "num_gpus", "device", "save_minutes", "keep_checkpoints", "hooks", "on_nan",
        "on_save_error", "histogram_steps", "picture_epochs",
    }  # fmt: skip


def test_what_does_not_name_the_run_may_change():
    """Otherwise two commands could ask for one directory and only one of them could have it."""
    for name, field in FIELDS.items():
        assert field.metadata["names_run"] or field.metadata["may_change"], name


def test_derived_settings_are_those_without_a_default_that_a_run_needs():
    derived = {name for name, field in FIELDS.items() if field.metadata["derived"]}
    assert derived == {
        "stem", "batch_norm_momentum", "augment", "label_smoothing", "learning_rate",
        "weight_decay", "warmup_epochs", "eval_crop",
    }  # fmt: skip
    optional = {name for name, field in FIELDS.items() if field.default is None}
    assert optional == derived | {
        "image_size",
        "init_from",
        "data_dir",
        "head_learning_rate",
        "bias_learning_rate",
    }


def test_msgspec_names_the_place_of_an_error_as_it_is_read_here():
    """`convert` takes the name of the field from the end of msgspec's message."""
    with pytest.raises(msgspec.ValidationError, match=r"at `\$\.step_epochs\[0\]`$"):
        msgspec.convert({"step_epochs": [0.0]}, Config)
