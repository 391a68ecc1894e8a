"""Lets workers wait for each other before TensorFlow connects them.

TensorFlow's own wait ignores signals, lasts an hour, and does not notice on the chief that a worker
has died. Here each worker connects to the chief's port, which TensorFlow uses afterwards, and sends
the addresses it was given, its index and its devices. Once all are there, the chief starts them.
"""

import contextlib
import json
import multiprocessing.connection
import os
import socket
import time

from loops.errors import RunError, reason

_START = b"start\n"
_HELLO_SECONDS, _MAX_HELLO_BYTES = 5.0, 1 << 20
_REMEDY = "start all workers together"


def meet(addresses: tuple[str, ...], index: int, timeout: float, devices: str = "") -> None:
    """Returns once all workers have called it.

    Args:
        addresses: of all workers, as host:port; the first is the chief's.
        index: of this worker in `addresses`.
        timeout: seconds to wait.
        devices: what this worker computes on, such as "2 GPUs".

    Raises:
        RunError: a worker does not connect, stops, was given other addresses or has other devices;
            or the port of this worker is in use.
    """
    port, has_ipv6 = int(addresses[index].rpartition(":")[2]), socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=has_ipv6)
    except OSError as error:
        cause = os.strerror(error.errno)
        raise RunError(f"cannot listen on port {port} ({cause}); choose another port") from error
    with server:
        if index == 0:
            _wait_for_workers(server, addresses, timeout, devices)
        else:
            _wait_for_chief(addresses, index, timeout, devices)


def _wait_for_workers(
    server: socket.socket, addresses: tuple[str, ...], timeout: float, devices: str
) -> None:
    deadline = time.monotonic() + timeout
    names = [f"worker {i} at {address}" for i, address in enumerate(addresses)]
    workers: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as connections:
        while len(workers) < len(addresses) - 1:
            seconds = max(0.0, deadline - time.monotonic())
            ready = multiprocessing.connection.wait([server, *workers.values()], seconds)
            if not ready:
                missing = [name for i, name in enumerate(names) if i and i not in workers]
                raise RunError(f"{', '.join(missing)} did not connect; {_REMEDY}")
            for index, connection in workers.items():
                if connection in ready:  # Workers are silent, so it is closed.
                    raise RunError(f"{names[index]} stopped during start-up; {_REMEDY}")
            connection = connections.enter_context(server.accept()[0])
            index = _read_hello(connection, addresses, devices)
            if index is None:  # Not a worker: a port scanner, for example.
                connection.close()
            elif index in workers:
                raise RunError(f"two processes are worker {index}; give each its own index")
            else:
                workers[index] = connection
        for connection in workers.values():
            with contextlib.suppress(OSError):
                connection.sendall(_START)


def _read_hello(connection: socket.socket, addresses: tuple[str, ...], devices: str) -> int | None:
    """The index that a worker sends, or None if the other side is not a worker.

    Raises:
        RunError: the worker was given other addresses than the chief, or has other devices.
    """
    connection.settimeout(_HELLO_SECONDS)
    try:
        with connection.makefile("rb") as stream:
            others, index, other_devices = json.loads(stream.readline(_MAX_HELLO_BYTES))
        name = f"worker {index} at {others[index]}"
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    if others != list(addresses):
        raise RunError(
            f"{name} was given the workers {', '.join(map(str, others))}, but the chief "
            f"{', '.join(addresses)}; start all workers with the same list"
        )
    if other_devices != devices:
        raise RunError(
            f"{name} uses {other_devices}, but the chief {devices}; "
            "give all workers the same --num_gpus and --device, and check that each sees its GPUs"
        )
    return index if index in range(1, len(addresses)) else None


def _wait_for_chief(addresses: tuple[str, ...], index: int, timeout: float, devices: str) -> None:
    chief, answer, deadline = addresses[0], b"", time.monotonic() + timeout
    host, _, port = chief.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            # A connection to an unused local port can be given that port, and reach itself.
            if connection.getsockname() != connection.getpeername():
                break
            connection.close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"cannot connect to the chief at {chief} ({reason(error)}); {_REMEDY}"
                ) from error
        time.sleep(0.2)
    with connection, contextlib.suppress(OSError):
        connection.sendall(json.dumps([addresses, index, devices]).encode() + b"\n")
        # The chief started to wait earlier, so it gives up first and names the missing workers.
        connection.settimeout(timeout + 2 * _HELLO_SECONDS)
        answer = connection.recv(len(_START))
    if not answer:
        raise RunError(f"the chief at {chief} stopped during start-up; see its output")
    if answer != _START:
        raise RunError(f"{chief} answers but is not the chief of this run; choose another port")
