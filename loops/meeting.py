"""Workers wait for each other here, before TensorFlow connects them.

TensorFlow's own wait hears no signal, lasts an hour, and does not notice on the chief that a worker
died before it came. Here each worker opens a connection to the chief and says who it is; once all
have come the chief tells them to go. The port is the one that TensorFlow then takes.
"""

import contextlib
import errno
import json
import selectors
import socket
import time

from loops.errors import RunError, reason

_GO = b"go\n"
_LONGEST_HELLO = 1 << 20
_TOGETHER = "start all workers together"


def meet(addresses: tuple[str, ...], index: int, seconds: float) -> None:
    """Returns once all workers are there.

    Args:
        addresses: of the workers, as host:port; the first is the chief's.
        index: which of them this one is.
        seconds: how long to wait for them.

    Raises:
        RunError: one does not come, is gone again, or has another description of the cluster; or
            the port is in use.
    """
    with _listen(int(addresses[index].rpartition(":")[2])) as server:
        if index == 0:
            _wait_for_all(server, addresses, seconds)
        else:
            _go_to_the_chief(addresses, index, seconds)


def _listen(port: int) -> socket.socket:
    try:
        # By IPv4 and IPv6 where the machine has both.
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        used = error.errno == errno.EADDRINUSE
        why = "is in use; stop who uses it, or take another" if used else reason(error)
        raise RunError(f"this worker's port {port} {why}") from error


def _wait_for_all(server: socket.socket, addresses: tuple[str, ...], seconds: float) -> None:
    """The chief's part."""
    deadline = time.monotonic() + seconds
    came: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as connections:
        selector.register(server, selectors.EVENT_READ)
        while len(came) < len(addresses) - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [i for i in range(1, len(addresses)) if i not in came]
                raise RunError(f"{_names(addresses, missing)} did not come up; {_TOGETHER}")
            for key, _ in selector.select(left):
                if key.fileobj is server:
                    connection, _ = server.accept()
                    connection.setblocking(False)
                    connections.enter_context(connection)
                    selector.register(connection, selectors.EVENT_READ, bytearray())
                elif not _hear(key.fileobj, key.data, addresses, came):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
        for index, connection in came.items():
            try:
                connection.sendall(_GO)
            except OSError as error:
                raise _gone(addresses, index) from error


def _hear(connection, heard: bytearray, addresses, came: dict[int, socket.socket]) -> bool:
    """Takes what a connection brings; whether it may be, or is, a worker's.

    Raises:
        RunError: a worker is gone, or does not belong to the others.
    """
    try:
        received = connection.recv(_LONGEST_HELLO)
    except OSError:
        received = b""
    for index, other in came.items():
        if other is connection:  # A worker that has come says nothing more.
            raise _gone(addresses, index)
    heard += received
    if not received or len(heard) > _LONGEST_HELLO:
        return False
    if not heard.endswith(b"\n"):
        return True
    try:
        others, index = json.loads(heard)
        other = others[index]
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
    if others != list(addresses):
        raise RunError(
            f"worker {index} at {other} was told of other workers than the chief: "
            f"{', '.join(map(str, others))} and not {', '.join(addresses)}; start all alike"
        )
    if index in came or index == 0:
        raise RunError(f"two processes are worker {index}; give each its own index")
    came[index] = connection
    return True


def _go_to_the_chief(addresses: tuple[str, ...], index: int, seconds: float) -> None:
    """The part of all others."""
    chief = addresses[0]
    with _connect(chief, seconds) as connection:
        try:
            connection.sendall(json.dumps([addresses, index]).encode() + b"\n")
            # The chief was there before, so that it gives up before.
            connection.settimeout(seconds + 10)
            answer = connection.recv(100)
        except ConnectionError:
            answer = b""
        except OSError as error:
            raise RunError(f"the chief at {chief} does not answer; {_TOGETHER}") from error
    if not answer:
        raise RunError(f"the chief at {chief} stopped before all workers were up, and says why")
    if answer != _GO:
        raise RunError(f"{chief} answers, but is not the chief of this run; take another port")


def _connect(chief: str, seconds: float) -> socket.socket:
    """A connection to the chief, as soon as it is there."""
    deadline = time.monotonic() + seconds
    host, _, port = chief.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            # Who calls an unused port of its own machine can be given that port, and meet itself.
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"worker 0, the chief, at {chief} did not come up ({reason(error)}); "
                    f"{_TOGETHER}"
                ) from error
        time.sleep(0.2)


def _names(addresses: tuple[str, ...], indices: list[int]) -> str:
    return ", ".join(f"worker {i} at {addresses[i]}" for i in indices)


def _gone(addresses: tuple[str, ...], index: int) -> RunError:
    return RunError(
        f"{_names(addresses, [index])} is gone before all workers were up; start them again"
    )
