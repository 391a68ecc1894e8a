"""Checks that every net starts to learn.

    python benchmarks/first_steps.py                       # all nets, about half an hour
    python benchmarks/first_steps.py inception_v3 resnet50

Each net is trained with train.py for 40 updates on the digits dataset, with its small stem. Its
training loss must fall: the mean over steps 31 to 40 is compared with that over steps 1 to 10.
Prints one line per net. Exits with code 1 if the loss of any net did not fall.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SETTINGS = ("--dataset=digits", "--epochs=2", "--batch_size=64", "--learning_rate=0.02")


def losses(name: str, directory: pathlib.Path) -> list[float]:
    """The training loss of a new run of a net, in nats: one mean per 10 steps."""
    run_dir = directory / name
    command = (f"--net={name}", *SETTINGS, "--log_steps=10", f"--run_dir={run_dir}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    rows = [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [row["loss"] for row in rows if row["split"] == "train" and row["step"] % 10 == 0]


def main() -> None:
    """Checks the nets named on the command line, or all nets."""
    import nets

    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for name in sys.argv[1:] or nets.NETS:
            found = losses(name, pathlib.Path(directory))
            falls = found[-1] < found[0]
            failed += not falls
            figures = " ".join(f"{loss:7.4f}" for loss in found)
            print(f"{name:<22} {figures}  {'falls' if falls else 'DOES NOT FALL'}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
