"""The measurement of the input pipeline, in its smallest form."""

import json

import pytest

from benchmarks import input_speed


@pytest.mark.exhaustive
def test_every_part_measures(tmp_path, monkeypatch, capsys):
    report = tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", [
        "input_speed.py", "--repeats=2", "--steps=1", "--batch_size=8", "--pipeline=16",
        "--photographs=12", "--size=32", "--folder_net=inception10", f"--json={report}",
    ])  # fmt: skip
    input_speed.main()
    found = json.loads(report.read_text(encoding="utf-8"))
    things = [thing for part in input_speed.PARTS for thing in found[part].values()]
    assert len(things) == 8
    assert capsys.readouterr().out.count("\n") == 8 + 3
    for figures in things:
        speed = figures["images_per_second"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        if "waiting_for_data" in figures:
            assert 0 <= figures["waiting_for_data"]["median"] <= 1
