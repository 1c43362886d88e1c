"""A TCP proxy on loopback that can cut, stop and slow the connections through it.

It runs on threads, so that it goes on whatever the event loop under test does.
"""

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

_RECEIVE_BYTES = 16 * 1024
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards a port of its own to *target_port*; use it as a context manager."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.sent_bytes = 0
        """Bytes passed on towards the target, over all connections."""
        self._cut_at_bytes: int | None = None
        self._rate_bytes_s: float | None = None
        self._flowing = threading.Event()
        self._flowing.set()
        self._closing = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self._flowing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def is_used(self) -> bool:
        """Tell whether there is a connection through it, or one that has not quite ended."""
        return bool(self._sockets)

    def cut(self) -> None:
        """Reset every connection now."""
        with self._lock:
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.shutdown(socket.SHUT_RDWR)

    def cut_after(self, count_bytes: int) -> None:
        """Reset every connection, once, after so many more bytes towards the target."""
        self._cut_at_bytes = self.sent_bytes + count_bytes

    def stop_forwarding(self) -> None:
        """Become a black hole: connections stay, nothing gets through, nobody is told."""
        self._flowing.clear()

    def forward(self) -> None:
        """Pass on again what comes, and what has been held back."""
        self._flowing.set()

    def slow_down(self, rate_bytes_s: float | None) -> None:
        """Pass on no more than this many bytes a second in each direction."""
        self._rate_bytes_s = rate_bytes_s

    def _spawn(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):  # Small requests must not wait for acknowledgements.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {near, far}
            self._spawn(self._serve, near, far)

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        if self._closing:  # It came while the others were cut.
            self.cut()
        back = threading.Thread(target=self._pump, args=(far, near, False), daemon=True)
        back.start()
        self._pump(near, far, True)
        back.join()
        with self._lock:
            self._sockets -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        # An error means that an end is gone; the other one is told by the shutdown below.
        with contextlib.suppress(OSError):
            while data := source.recv(_RECEIVE_BYTES):
                self._flowing.wait()
                if self._rate_bytes_s is not None:
                    time.sleep(len(data) / self._rate_bytes_s)
                if upwards and self._is_time_to_cut(len(data)):
                    self.cut()
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_time_to_cut(self, count_bytes: int) -> bool:
        with self._lock:
            self.sent_bytes += count_bytes
            due = self._cut_at_bytes is not None and self.sent_bytes >= self._cut_at_bytes
            if due:
                self._cut_at_bytes = None
            return due
