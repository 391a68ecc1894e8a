"""Kills runs at random times, and compares their results with those of uninterrupted runs.

    python benchmarks/kill_runs.py --kills=24 --seed=1

Each configuration is trained twice: once without interruption, and once killed repeatedly with
SIGKILL and resumed by the same command. Weights, optimizer slots, averages, BatchNorm statistics,
the best checkpoint, `metrics.jsonl`, `result.json` and the points that TensorBoard shows must then
be equal bit for bit. Prints one line per kill. Exits with code 1 if anything differs.
"""

import argparse
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMON = (
    "--dataset=digits", "--batch_size=64", "--device=cpu", "--deterministic", "--log_steps=7",
    "--save_minutes=0.001", "--keep_checkpoints=2",
)  # fmt: skip
# Flags and number of workers, by name.
CONFIGURATIONS = {
    "accumulation, clipping, averages": (
        ("--epochs=8", "--accumulation=2", "--clip_norm=0.5", "--ema_decay=0.9"), 1,
    ),
    "adamw, mixup, cutmix, bfloat16": (
        ("--epochs=8", "--optimizer=adamw", "--augment=crop:1,flip,cutout:3,mixup:0.2|cutmix:1",
         "--precision=mixed_bfloat16"), 1,
    ),
    "two replicas": (
        ("--epochs=6", "--num_gpus=2", "--accumulation=2", "--clip_norm=0.5", "--ema_decay=0.9",
         "--augment=crop:1,mixup:0.2", "--label_smoothing=0.1", "--precision=mixed_bfloat16"), 1,
    ),
    "two replicas in step, float16": (
        ("--epochs=5", "--num_gpus=2", "--sync_batch_norm", "--precision=mixed_float16"), 1,
    ),
    "dropout and auxiliary heads": (
        ("--epochs=1", "--net=inception_v1", "--learning_rate=0.01"), 1,
    ),
    "two workers": (("--epochs=5", "--sync_batch_norm", "--ema_decay=0.9"), 2),
}  # fmt: skip


def start(run_dir: pathlib.Path, args, workers: int = 1) -> list[subprocess.Popen]:
    """Starts a run, with one process per worker."""
    command = [sys.executable, str(ROOT / "train.py"), *COMMON, *args, f"--run_dir={run_dir}"]
    ports = free_ports(workers)
    processes = []
    for index in range(workers):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = os.environ | ({"TF_CONFIG": json.dumps(config)} if workers > 1 else {})
        processes.append(
            subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    return processes


def free_ports(count: int) -> list[int]:
    """Unused ports of this machine."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def finish(processes: list[subprocess.Popen]) -> None:
    """Waits for a run to finish.

    Raises:
        RuntimeError: a process exits with an error.
    """
    errors = [process.communicate(timeout=600)[1] for process in processes]
    codes = [process.returncode for process in processes]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}, errors {[error[-1000:] for error in errors]}")


def kill(processes: list[subprocess.Popen], victim: int, when) -> bool:
    """Kills one process of a run, and waits for the others to stop.

    Args:
        processes: of the run.
        victim: index of the process to kill.
        when: called first; returns when it is time to kill. Its argument is a function that
            returns whether the process is running.

    Returns:
        Whether the process was still running when it was killed.

    Raises:
        RuntimeError: the others do not stop within a minute, although training had started.
    """
    when(lambda: processes[victim].poll() is None)
    alive = processes[victim].poll() is None
    processes[victim].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    late = any(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
    printed = [process.communicate()[0] for process in processes]
    if late and "\nrun    " in printed[0]:  # The chief prints it when training starts.
        raise RuntimeError("the others did not stop within a minute")
    return alive


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Describes the differences between two finished runs, one phrase each."""
    found = []
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    results = [
        json.loads((run / "result.json").read_text(encoding="utf-8")) for run in (one, other)
    ]
    for result in results:
        result["checkpoint"] = result["checkpoint"].split("/")[-2:]
    if results[0] != results[1]:
        found.append("result.json")
    for part in ("checkpoints", "best"):
        a, b = (tensors(run / part) for run in (one, other))
        names = sorted(a.keys() | b.keys())
        found += [
            f"{part}: {name}" for name in names if name not in a or not _equal(a[name], b.get(name))
        ]
    for split in (".", "train", "val", "test"):
        a, b = (_points(run / split) for run in (one, other))
        if len(set(b)) != len(b):
            found.append(f"points of {split} are there twice")
        if sorted(a) != sorted(b):
            found.append(f"points of {split}")
    return found


def _equal(a, b) -> bool:
    return b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def tensors(directory: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The variables in a checkpoint of a directory, without TensorFlow's save counter.

    Args:
        directory: of the checkpoints.
        step: of the checkpoint; by default that of the newest.
    """
    if step is None:
        step = max(_steps(directory))
    reader = tf.train.load_checkpoint(str(directory / f"step-{step}"))
    names = [
        name
        for name in reader.get_variable_to_shape_map()
        if "save_counter" not in name and "OBJECT_GRAPH" not in name
    ]
    return {"step": np.asarray(step), **{n: np.asarray(reader.get_tensor(n)) for n in names}}


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of which there is a checkpoint in a directory."""
    return [int(re.findall(r"\d+", p.name)[-1]) for p in directory.glob("step-*.index")]


def _points(directory: pathlib.Path) -> list[tuple]:
    """(tag, step, value) of every point that TensorBoard shows, except timings.

    TensorBoard drops what a restart has made obsolete.
    """
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    return [
        (tag, event.step, event.tensor_proto.SerializeToString())
        for tag in events.Tags()["tensors"]
        for event in events.Tensors(tag)
        if not tag.startswith("speed/")
    ]


def saved_step(run_dir: pathlib.Path) -> int:
    """The last step that a run has saved; 0 if there is none."""
    return max(_steps(run_dir / "checkpoints"), default=0)


def _moment(run_dir: pathlib.Path, generator: random.Random, begun: float, seconds: float):
    """Chooses a random time for a kill: during start-up in one of three cases, else in training.

    Args:
        run_dir: directory of the run.
        generator: random number generator.
        begun: duration of the start-up in seconds.
        seconds: time in seconds that is left after the start-up.

    Returns:
        A function that returns at that time. Its argument is a function that returns whether the
        process is running.
    """
    starting, fraction, saved = generator.random() < 1 / 3, generator.random(), saved_step(run_dir)

    def wait(lives) -> None:
        deadline = time.monotonic() + (fraction * begun if starting else 600)
        while lives() and time.monotonic() < deadline:
            if not starting and saved_step(run_dir) > saved:
                time.sleep(fraction * seconds)
                return
            time.sleep(0.01)

    return wait


def try_configuration(
    name: str,
    kills: int,
    generator: random.Random,
    home: pathlib.Path,
    more: tuple[str, ...] = (),
) -> list[str]:
    """Trains a configuration without and with kills, and returns the differences.

    Args:
        name: of the configuration, a key of `CONFIGURATIONS`.
        kills: number of kills.
        generator: random number generator for the times of the kills.
        home: directory for the runs.
        more: flags to add to those of the configuration.
    """
    args, workers = CONFIGURATIONS[name]
    args = (*args, *more)
    undisturbed, disturbed = (home / f"{name}-{way}" for way in ("undisturbed", "disturbed"))
    started = time.time()
    finish(start(undisturbed, args, workers))
    seconds, steps = time.time() - started, saved_step(undisturbed)
    first_row = (undisturbed / "train").stat().st_mtime - started
    print(f"{name}: {steps} steps in {seconds:.0f} s undisturbed", flush=True)
    made = 0
    while made < kills:
        left = (seconds - first_row) * (1 - saved_step(disturbed) / steps)
        # Leaves some of the run for the next kill.
        moment = _moment(disturbed, generator, first_row, 0.6 * left)
        begun, victim = time.monotonic(), generator.randrange(workers)
        if not kill(start(disturbed, args, workers), victim, moment):
            print("  it was finished before its next kill; once more from the start", flush=True)
            disturbed = disturbed.with_name(disturbed.name + "-again")
            continue
        made += 1
        who = f" of worker {victim}" if workers > 1 else ""
        place = f"saved at step {saved_step(disturbed)}"
        print(f"  kill {made}{who} after {time.monotonic() - begun:.1f} s, {place}", flush=True)
    finish(start(disturbed, args, workers))
    found = differences(undisturbed, disturbed)
    print(f"  {'; '.join(found) if found else 'equal bit for bit'}", flush=True)
    return found


def main() -> None:
    """Tries all configurations, with the kills divided evenly among them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24, help="total number of kills")
    parser.add_argument("--seed", type=int, default=None, help="of the kill times; default: random")
    parser.add_argument("--only", help="only configurations whose name contains this")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else time.time_ns() % 2**32
    generator = random.Random(seed)
    names = [name for name in CONFIGURATIONS if (args.only or "") in name]
    print(f"seed {seed}, {args.kills} kills over {len(names)} configurations", flush=True)
    bad = []
    with tempfile.TemporaryDirectory() as home:
        for i, name in enumerate(names):
            share = args.kills // len(names) + (i < args.kills % len(names))
            if try_configuration(name, share, generator, pathlib.Path(home)):
                bad.append(name)
    print(f"different: {', '.join(bad)}" if bad else "all equal bit for bit")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
