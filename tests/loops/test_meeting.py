"""Workers that wait for each other, here as threads; nothing of TensorFlow takes part."""

import json
import socket
import threading
import time

import pytest

from benchmarks.kill_runs import free_ports
from loops.errors import RunError
from loops.meeting import meet

FAILED = "the chief at {} stopped before all workers were up, and says why"


@pytest.fixture
def addresses():
    return tuple(f"127.0.0.1:{port}" for port in free_ports(3))


class Worker(threading.Thread):
    """`meet`, with what came of it."""

    def __init__(self, addresses, index, seconds=20.0):
        super().__init__(daemon=True)
        self.args, self.error = (addresses, index, seconds), None
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
    """What a worker says to the chief."""
    return json.dumps([addresses, index]).encode() + b"\n"


def said_hello(addresses, text):
    """A connection to the chief on which a text was sent, once the chief is there."""
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
def test_all_that_come_meet(addresses, order):
    workers = []
    for index in order:
        assert all(worker.is_alive() for worker in workers)
        workers.append(Worker(addresses, index))
        time.sleep(0.2)
    assert [worker.outcome() for worker in workers] == [None] * 3


def test_strangers_do_not_count(addresses):
    workers = [Worker(addresses, 0), Worker(addresses, 1)]
    strangers = [said_hello(addresses, text) for text in (b"GET / HTTP/1.1\n", b"\xff\n", b"[]\n")]
    stranger = said_hello(addresses, b"")
    stranger.close()
    time.sleep(0.3)
    assert all(worker.is_alive() for worker in workers)
    workers.append(Worker(addresses, 2))
    assert [worker.outcome() for worker in workers] == [None] * 3
    assert [stranger.recv(10) for stranger in strangers] == [b""] * 3


def test_a_worker_that_does_not_come_is_named(addresses):
    chief = Worker(addresses, 0, seconds=1)
    other = Worker(addresses, 1)
    together = "start all workers together"
    assert chief.outcome() == f"worker 2 at {addresses[2]} did not come up; {together}"
    assert other.outcome() == FAILED.format(addresses[0])


def test_a_chief_that_does_not_come_is_named(addresses):
    assert Worker(addresses, 1, seconds=0.5).outcome() == (
        f"worker 0, the chief, at {addresses[0]} did not come up (Connection refused); "
        "start all workers together"
    )


def test_a_worker_that_dies_before_all_have_come_stops_the_others(addresses):
    addresses = (*addresses, "nowhere:1")
    chief, other = Worker(addresses, 0), Worker(addresses, 2)
    victim = said_hello(addresses, hello(addresses, 1))
    time.sleep(0.3)
    assert chief.is_alive()
    assert other.is_alive()
    victim.close()
    assert chief.outcome().startswith(f"worker 1 at {addresses[1]} is gone before all")
    assert other.outcome() == FAILED.format(addresses[0])


def test_another_description_of_the_cluster_is_refused(addresses):
    chief = Worker(addresses, 0)
    astray = Worker((addresses[0], *reversed(addresses[1:])), 1)
    assert "was told of other workers than the chief" in chief.outcome()
    assert astray.outcome() == FAILED.format(addresses[0])


def test_two_that_are_the_same_worker_are_refused(addresses):
    chief, first = Worker(addresses, 0), said_hello(addresses, hello(addresses, 1))
    second = said_hello(addresses, hello(addresses, 1))
    assert "two processes are worker 1" in chief.outcome()
    first.close()
    second.close()


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_in_use_is_named(addresses, index):
    port = int(addresses[index].rpartition(":")[2])
    with socket.create_server(("", port)):
        assert f"port {port} is in use" in Worker(addresses, index).outcome()


def test_who_answers_but_is_no_chief_is_told(addresses):
    host, _, port = addresses[0].rpartition(":")
    with socket.create_server((host, int(port))) as server:
        worker = Worker(addresses, 1)
        connection, _ = server.accept()
        connection.sendall(b"220 mail\n")
        assert f"{addresses[0]} answers, but is not the chief" in worker.outcome()
        connection.close()
