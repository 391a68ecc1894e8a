"""The rendezvous of workers, here threads. TensorFlow takes no part."""

import json
import socket
import threading
import time

import pytest

from benchmarks.kill_runs import free_ports
from loops.distributed.rendezvous import meet
from loops.errors import RunError

TOGETHER = "start all workers together"
CHIEF_STOPPED = "the chief at {} stopped during start-up; see its output"


@pytest.fixture
def addresses():
    return tuple(f"127.0.0.1:{port}" for port in free_ports(3))


class Worker(threading.Thread):
    """A thread that calls `meet` and keeps the message of its error."""

    def __init__(self, addresses, index, seconds=20.0, devices="1 CPU"):
        super().__init__(daemon=True)
        self.args, self.error = (addresses, index, seconds, devices), None
        self.start()

    def run(self):
        try:
            meet(*self.args)
        except RunError as error:
            self.error = str(error)

    def outcome(self):
        self.join(timeout=30)
        assert not self.is_alive()
        return self.error


def hello(addresses, index):
    """What a worker sends to the chief."""
    return json.dumps([addresses, index, "1 CPU"]).encode() + b"\n"


def connected(addresses, text):
    """A connection to the chief, once it listens, on which bytes were sent."""
    host, _, port = addresses[0].rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host, int(port)))
        except OSError:
            time.sleep(0.01)
            continue
        connection.sendall(text)
        return connection


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_workers_meet(addresses, order):
    workers = []
    for index in order:
        assert all(worker.is_alive() for worker in workers)
        workers.append(Worker(addresses, index))
        time.sleep(0.2)
    assert [worker.outcome() for worker in workers] == [None] * 3


def test_other_connections_are_closed_and_ignored(addresses, monkeypatch):
    monkeypatch.setattr("loops.distributed.rendezvous._HELLO_SECONDS", 1.0)
    workers = [Worker(addresses, 0), Worker(addresses, 1)]
    texts = (
        b"GET / HTTP/1.1\n", b"\xff\n", b"[]\n", b"[" * 100_000 + b"\n", b"no end of line",
        hello(addresses, 0), hello(addresses, -1), hello(addresses, 3), hello(addresses, "1"),
    )  # fmt: skip
    strangers = [connected(addresses, text) for text in texts]
    stranger = connected(addresses, b"")
    stranger.close()
    for stranger in strangers:
        stranger.settimeout(10)
    assert [stranger.recv(10) for stranger in strangers] == [b""] * len(texts)
    assert all(worker.is_alive() for worker in workers)
    workers.append(Worker(addresses, 2))
    assert [worker.outcome() for worker in workers] == [None] * 3


def test_a_missing_worker_is_named(addresses):
    chief = Worker(addresses, 0, seconds=1)
    other = Worker(addresses, 1)
    assert chief.outcome() == f"worker 2 at {addresses[2]} did not connect; {TOGETHER}"
    assert other.outcome() == CHIEF_STOPPED.format(addresses[0])


def test_a_missing_chief_is_named(addresses):
    assert Worker(addresses, 1, seconds=0.5).outcome() == (
        f"cannot connect to the chief at {addresses[0]} (Connection refused); {TOGETHER}"
    )


def test_a_worker_that_dies_before_all_are_connected_stops_the_others(addresses):
    addresses = (*addresses, "nowhere:1")
    chief, other = Worker(addresses, 0), Worker(addresses, 2)
    victim = connected(addresses, hello(addresses, 1))
    time.sleep(0.3)
    assert chief.is_alive()
    assert other.is_alive()
    victim.close()
    assert chief.outcome() == f"worker 1 at {addresses[1]} stopped during start-up; {TOGETHER}"
    assert other.outcome() == CHIEF_STOPPED.format(addresses[0])


def test_a_worker_with_other_addresses_is_refused(addresses):
    chief = Worker(addresses, 0)
    others = (addresses[0], addresses[2], addresses[1])
    other = Worker(others, 1)
    assert chief.outcome() == (
        f"worker 1 at {others[1]} was given the workers {', '.join(others)}, but the chief "
        f"{', '.join(addresses)}; start all workers with the same list"
    )
    assert other.outcome() == CHIEF_STOPPED.format(addresses[0])


def test_a_worker_with_other_devices_is_refused(addresses):
    """TensorFlow would fail, or wait, in its first exchange."""
    chief, other = Worker(addresses, 0), Worker(addresses, 1, devices="2 GPUs")
    assert chief.outcome() == (
        f"worker 1 at {addresses[1]} uses 2 GPUs, but the chief 1 CPU; give all workers the same "
        "--num_gpus and --device, and check that each sees its GPUs"
    )
    assert other.outcome() == CHIEF_STOPPED.format(addresses[0])


def test_two_processes_with_the_same_index_are_refused(addresses):
    chief, first = Worker(addresses, 0), connected(addresses, hello(addresses, 1))
    second = connected(addresses, hello(addresses, 1))
    assert chief.outcome() == "two processes are worker 1; give each its own index"
    first.close()
    second.close()


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_in_use_is_named(addresses, index):
    port = int(addresses[index].rpartition(":")[2])
    with socket.create_server(("", port)):
        assert Worker(addresses, index).outcome() == (
            f"cannot listen on port {port} (Address already in use); choose another port"
        )


def test_a_worker_that_reaches_itself_tries_again(addresses, monkeypatch):
    """As can happen on one machine: the system gives the connection the port of the chief."""
    host, _, port = addresses[0].rpartition(":")
    tries = []

    def create_connection(*args, **kwargs):
        tries.append(args)
        if len(tries) > 1:
            return real(*args, **kwargs)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind((host, int(port)))
        connection.connect((host, int(port)))
        return connection

    real = socket.create_connection
    monkeypatch.setattr("socket.create_connection", create_connection)
    worker = Worker(addresses[:2], 1)
    while not tries:
        time.sleep(0.01)
    time.sleep(0.1)
    chief = Worker(addresses[:2], 0)
    assert (chief.outcome(), worker.outcome()) == (None, None)
    assert len(tries) > 1


def test_another_server_at_the_address_of_the_chief_is_recognized(addresses):
    host, _, port = addresses[0].rpartition(":")
    with socket.create_server((host, int(port))) as server:
        worker = Worker(addresses, 1)
        connection, _ = server.accept()
        connection.sendall(b"220 mail\n")
        assert worker.outcome() == (
            f"{addresses[0]} answers but is not the chief of this run; choose another port"
        )
        connection.close()
