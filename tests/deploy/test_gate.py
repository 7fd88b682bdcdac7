"""What the gate counts: descriptors that a connection leaves behind, not the catalogue's readers."""

import os
import socket
from pathlib import Path

import pytest

from holdoverd.deploy import gate


def test_files_are_no_leak_and_sockets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SETTLE_S", 0.0)
    before = gate.open_fds(os.getpid())
    files = [(tmp_path / str(n)).open("w") for n in range(3 * gate.SPARE_FDS)]
    pairs = [socket.socketpair() for _ in range(gate.SPARE_FDS // 2)]
    gate.settled(os.getpid(), before)
    pairs.append(socket.socketpair())
    with pytest.raises(gate.ProbeError, match="does not close what it served"):
        gate.settled(os.getpid(), before)
    for file in files:
        file.close()
    for pair in pairs:
        for end in pair:
            end.close()


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert gate.open_fds(2**22 + 1) == 0
