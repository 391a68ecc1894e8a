"""Flags: what is good, and one line for what is not. Nothing here starts TensorFlow anew."""

import subprocess
import sys

import pytest
from absl import flags

import cli
from tests.conftest import ROOT


def parse(*args, define=cli.define_train_flags):
    return cli.parse(["train.py", *args], define, flags.FlagValues())


def test_defaults():
    found = parse()
    assert found["net"] == "inception10"
    assert found["dataset"] == "cifar10"
    assert found["num_gpus"] == 1
    assert found["learning_rate"] is None


def test_every_flag_has_a_help():
    for define in (cli.define_train_flags, cli.define_eval_flags):
        values = flags.FlagValues()
        for name in define(values):
            assert values[name].help.endswith("."), name


def test_free_flags_exist():
    assert set(cli.UNNAMED_FLAGS) <= set(cli.FREE_FLAGS) <= set(parse())


def test_flagfile(tmp_path):
    (tmp_path / "recipe.txt").write_text("# A recipe.\n--net=resnet18\n--step_epochs=3,5.5\n")
    found = parse(f"--flagfile={tmp_path / 'recipe.txt'}", "--seed=4")
    assert (found["net"], found["step_epochs"], found["seed"]) == ("resnet18", ["3", "5.5"], 4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--epochs=0", "above 0"),
        ("--epochs=nan", "above 0"),
        ("--epochs=inf", "above 0"),
        ("--epochs=many", "--epochs"),
        ("--batch_size=0", "batch_size=0"),
        ("--batch_size=-8", "batch_size=-8"),
        ("--batch_size=1.5", "batch_size"),
        ("--num_gpus=0", "num_gpus=0"),
        ("--seed=4294967296", "seed=4294967296"),
        ("--image_size=-1", "image_size=-1"),
        ("--crop_padding=-1", "crop_padding=-1"),
        ("--accumulation=0", "accumulation=0"),
        ("--learning_rate=-0.1", "above 0"),
        ("--momentum=1", "below 1"),
        ("--val_fraction=1", "below 1"),
        ("--label_smoothing=-0.1", "at least 0"),
        ("--optimizer=adagrad", "sgd|adam|adamw"),
        ("--schedule=linear", "constant|step|cosine|one_cycle"),
        ("--precision=int8", "float32|mixed_bfloat16|mixed_float16"),
        ("--device=tpu", "auto|cpu|gpu"),
        ("--bad_images=ignore", "error|skip"),
        ("--step_epochs=1,x", "as 15,25"),
        ("--step_epochs=0", "as 15,25"),
        ("--flip=perhaps", "flip"),
        ("--stem=huge", "small|large"),
        ("--init_from=", "must be keras or a file"),
        ("--image_size=5000", "image_size=5000"),
        ("--batch_norm_momentum=1", "below 1"),
        ("--num_classes=0", "num_classes=0"),
        ("--nett=resnet18", "Did you mean: net"),
        ("resnet18", "unexpected argument 'resnet18'"),
        ("--flagfile=/no/such/file", "/no/such/file"),
    ],
)
def test_bad_flags_are_one_line(argument, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(argument)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_failure_is_one_line_and_keeps_the_spaces_of_names(capsys):
    with pytest.raises(SystemExit):
        cli.fail("two  spaces.jpg\n  is wrong\r\n\n")
    assert capsys.readouterr().err.endswith(": two  spaces.jpg is wrong\n")


def test_eval_has_no_flags_of_the_net():
    found = parse("--run_dir=x", define=cli.define_eval_flags)
    assert not {"net", "precision", "image_size", "batch_size"} & set(found)


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_help_lists_the_flags(program):
    done = subprocess.run(
        [sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "--run_dir" in done.stdout
    assert done.stderr == ""


def check(saved, **kwargs):
    return cli.check(saved, cli.define_train_flags, "run/config.json", **kwargs)


def test_saved_flags_are_checked_and_completed():
    found = check({"net": "resnet18", "epochs": 2, "jit": True, "data_dir": None, "stem": "small"})
    assert (found["net"], found["epochs"], found["jit"]) == ("resnet18", 2.0, True)
    assert (found["data_dir"], found["stem"]) == (None, "small")
    # Of an older version, which did not have the flag.
    assert found["optimizer"] == "sgd"
    assert not set(cli.COMMAND_FLAGS) & set(found)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"unheard_of": 1}, "there is no flag --unheard_of"),
        ({"describe": True}, "there is no flag --describe"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "64"}, "--batch_size cannot be '64'"),
        ({"batch_size": True}, "--batch_size cannot be True"),
        ({"batch_size": None}, "--batch_size cannot be None"),
        ({"epochs": float("nan")}, "above 0"),
        ({"jit": 1}, "--jit cannot be 1"),
        ({"step_epochs": ["15"]}, "--step_epochs cannot be ['15']"),
        ({"optimizer": "adagrad"}, "sgd|adam|adamw"),
        ({"stem": None}, "--stem has no value"),
    ],
)
def test_bad_saved_flags_are_one_line_that_names_the_file(saved, message, capsys):
    with pytest.raises(SystemExit) as caught:
        check(saved, needed=("stem",))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run/config.json: " in error
    assert message in error


def test_long_and_unprintable_values_stay_one_short_line(capsys):
    with pytest.raises(SystemExit):
        parse("--seed=\x1b[2J\u2028" + "x" * 100_000)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert len(error) < 1000
    assert "\x1b" not in error
