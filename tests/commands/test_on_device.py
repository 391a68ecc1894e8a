"""Whole commands whose images are augmented and normalized on the replicas' devices."""

import pytest
import tensorflow as tf

from commands import build
from tests.commands.helpers import TINY, call, rows, tiny_net

ARGS = (
    *TINY, "--batch_size=64", "--epochs=2", "--augment=crop:1,cutout:2,mixup:0.2|cutmix:1",
    "--accumulation=2", "--ema_decay=0.9", "--log_steps=7", "--histogram_steps=20",
)  # fmt: skip


@pytest.mark.slow
def test_every_figure_is_that_of_a_run_augmented_in_the_pipeline(tmp_path, monkeypatch):
    """In training, evaluation, histograms and replay; on GPUs, it is the way things are done."""
    with tiny_net(draws=True):
        host, device = tmp_path / "host", tmp_path / "device"
        call("train.py", *ARGS, f"--run_dir={host}")
        # Those of pictures at the end are of the default strategy.
        monkeypatch.setattr(
            build, "on_gpus", lambda strategy: strategy is not tf.distribute.get_strategy()
        )
        call("train.py", *ARGS, f"--run_dir={device}")
        assert len(rows(host)) == 9
        for expected, found in zip(rows(host), rows(device), strict=True):
            assert found.pop("split") == expected.pop("split")
            assert found == pytest.approx(expected, rel=1e-4)
        row = call("replay.py", f"--run_dir={device}", "--step=23")["row"]
        assert row["recomputed"]["loss"] == pytest.approx(row["logged"]["loss"], rel=1e-4)
