"""Fixtures of the tests of the promises."""

import pytest

from tests.commands import helpers
from tests.commands.helpers import TINY, call


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with helpers.tiny_net():
        yield


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run of two epochs without its result, and the arguments to resume it."""
    run_dir = tmp_path_factory.mktemp("unfinished") / "run"
    args = (*TINY, "--epochs=2", "--log_steps=3")
    call("train.py", *args, f"--run_dir={run_dir}")
    return run_dir, args
