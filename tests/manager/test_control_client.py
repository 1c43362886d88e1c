"""Asking a driver: what it answers, and what is said when it does not."""

# ruff: noqa: ANN401 - answers hold anything

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimfuse.errors import BusyError
from aimfuse.manager import control_client
from aimfuse.manager.control_client import DriverError, DriverGone

Answerer = Callable[[dict[str, Any]], bytes | None]


def line(**answer: Any) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def test_the_answer_of_the_driver_is_returned(serve: Callable[[Answerer], Path]) -> None:
    state_dir = serve(lambda request: line(ok=True, asked=request["cmd"]))
    assert control_client.call(state_dir, {"cmd": "roll"}) == {"ok": True, "asked": "roll"}


def test_an_answer_of_many_pieces_is_put_together(serve: Callable[[Answerer], Path]) -> None:
    state_dir = serve(lambda _request: line(text="x" * 1_000_000))
    assert len(control_client.call(state_dir, {"cmd": "status"})["text"]) == 1_000_000


def test_a_refusal_carries_the_drivers_words_hint_and_exit_code(
    serve: Callable[[Answerer], Path],
) -> None:
    state_dir = serve(lambda _request: line(ok=False, error="halted", hint="Mount.", exit_code=13))
    with pytest.raises(DriverError, match="halted") as caught:
        control_client.call(state_dir, {"cmd": "roll"})
    assert (caught.value.hint, caught.value.exit_code) == ("Mount.", 13)


@pytest.mark.parametrize("reply", [b"", b"{}", b"not json\n", b"[1]\n", b"[" * 100_000 + b"\n"])
def test_nonsense_and_half_an_answer_are_no_answer(
    serve: Callable[[Answerer], Path], reply: bytes
) -> None:
    state_dir = serve(lambda _request: reply)
    with pytest.raises(DriverGone):
        control_client.call(state_dir, {"cmd": "status"})


def test_a_silent_driver_is_given_up(serve: Callable[[Answerer], Path]) -> None:
    state_dir = serve(lambda _request: None)
    with pytest.raises(BusyError, match="did not answer within"):
        control_client.call(state_dir, {"cmd": "status"}, 0.1)


def test_without_a_socket_it_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(BusyError, match="not mounted") as caught:
        control_client.call(tmp_path, {"cmd": "status"})
    assert "aimfuse mount" in caught.value.hint


def test_the_socket_of_a_dead_driver_means_not_mounted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(BusyError, match="not mounted"):
        control_client.call(tmp_path, {"cmd": "status"})


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["long-directory-name"] * 8)
    deep.mkdir(parents=True)
    link = tmp_path / "short"
    link.symlink_to(deep)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(link / "control.sock"))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(line(ok=True))

        thread = threading.Thread(target=answer)
        thread.start()
        assert len(str(deep)) > 108
        assert control_client.call(deep, {"cmd": "status"}) == {"ok": True}
        thread.join()
