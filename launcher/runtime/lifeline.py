"""Lifelines: a connection from every agent to that of node 0. The kernels keep it alive, whatever the processes do: it
breaks in seconds where a node or its network is gone, and at once where an agent died.

Nothing that arrives is acted on. A line whose other end said goodbye is not watched any more.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
from types import TracebackType

from launcher.logs import get_logger

IDLE_S, EVERY_S, TRIES = 2, 2, 4  # silence, then probes: 10 s until a line is taken to be cut
CONNECT_S = 10.0
STRANGERS = 16  # connections that have not yet said whose they are
GOODBYE = b"goodbye\n"


class Lifelines:
    """This agent's ends: one to node 0, or on node 0 one for every other node, as soon as that has called.

    Context manager: says goodbye in the end. ``token`` keeps others than the agents of this attempt out.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._listener: socket.socket | None = None
        self._strangers: list[socket.socket] = []
        self._lines: dict[int, socket.socket] = {}
        self._broken: dict[int, str] = {}

    def listen(self, address: str) -> int:
        """Let the other nodes call ``address``; the port. Raises OSError."""
        self._listener = socket.create_server((address, 0))
        self._listener.setblocking(False)
        return int(self._listener.getsockname()[1])

    def call(self, address: str, port: int, token: str, node: int) -> None:
        """Connect this node's agent to that of node 0. Without a line the deadlines of `limits` have to do."""
        line = None
        try:
            line = socket.create_connection((address, port), CONNECT_S)
            line.sendall(f"{token} {node}\n".encode())
            self._lines[0] = _kept_alive(line)
        except OSError as error:
            get_logger().warning("no lifeline to node 0 at %s:%d: %s", address, port, error)
            if line is not None:
                line.close()

    def broken(self) -> dict[int, str]:
        """Nodes whose line broke: ``cut`` (nothing answers) or ``died`` (the agent ended and said nothing)."""
        self._accept()
        for node, line in list(self._lines.items()):
            if (word := _look(line)) is not None:
                del self._lines[node]
                line.close()
                if word != "goodbye":
                    self._broken[node] = word
        return self._broken

    def __enter__(self) -> Lifelines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._accept()
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.send(GOODBYE)
        ends = [*self._lines.values(), *self._strangers, self._listener]
        for end in ends:
            if end is not None:
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # mostly: nobody calls
            for _ in range(STRANGERS if self._listener else 0):
                assert self._listener
                self._strangers.append(_kept_alive(self._listener.accept()[0]))
        waiting, self._strangers = self._strangers, []
        for line in waiting:
            try:
                said = line.recv(100)
            except BlockingIOError:
                self._strangers.append(line)
            except OSError:
                line.close()
            else:
                self._admit(line, said)
        while len(self._strangers) > STRANGERS:
            self._strangers.pop(0).close()

    def _admit(self, line: socket.socket, said: bytes) -> None:
        hello, _, more = said.partition(b"\n")
        token, _, node = hello.partition(b" ")
        if secrets.compare_digest(token, self.token.encode()) and not more:
            self._lines[int(node)] = line
        else:
            line.close()  # a stranger, or one who says hello and goodbye at once


def _kept_alive(line: socket.socket) -> socket.socket:
    line.setblocking(False)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, EVERY_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TRIES)
    return line


def _look(line: socket.socket) -> str | None:
    """None while all is well."""
    try:
        said = line.recv(100)
    except BlockingIOError:
        return None
    except OSError as error:
        return "died" if error.errno == errno.ECONNRESET else "cut"
    return "goodbye" if said else "died"
