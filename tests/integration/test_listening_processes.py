"""On which port a process listens, as /proc tells: asked seldom, as the kernel takes long."""

from pathlib import Path

import pytest

from gpu_metrics.adapters.proc_tree import ProcTree

PORTS = {8000, 8001}
HEADER = "  sl  local_address rem_address st tx_queue tr tm->when retrnsmt uid timeout inode\n"


class Proc:
    """Processes as Linux shows them, and a time that passes when a test says so."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 100.0
        self.tree = ProcTree(root, monotonic=lambda: self.now)

    def put(self, process_id: int, *, started: int = 5, inode: int = 0, network: int = 1) -> None:
        directory = self.root / str(process_id)
        for part in ("fd", "net", "ns"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        fields = " ".join(["S", "1", *["0"] * 17, str(started), "0"])
        (directory / "stat").write_text(f"{process_id} (vllm) {fields}")
        for name, target in (("fd/3", f"socket:[{inode}]"), ("ns/net", f"net:[{network}]")):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(target)

    def listen(self, process_id: int, ports: dict[int, int]) -> None:
        """Have the process's network show listening sockets, ports by inodes."""
        lines = [
            f"   0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 {inode} 1\n"
            for inode, port in ports.items()
        ]
        (self.root / str(process_id) / "net/tcp").write_text(HEADER + "".join(lines))

    def listens_on(self, process_id: int) -> int:
        return self.tree.listens_on(process_id, PORTS)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_processes_of_a_network_share_one_look_at_its_sockets(proc: Proc) -> None:
    for number, network in ((41, 1), (42, 1), (43, 2)):
        proc.put(number, inode=number, network=network)
        proc.listen(number, {})
    proc.listen(41, {41: 8000, 42: 8001, 43: 8001})
    # The second's list was not looked at, that of another network is.
    assert [proc.listens_on(number) for number in (41, 42, 43)] == [8000, 8001, 0]
    proc.now += 3
    proc.put(44, inode=44)
    proc.listen(44, {44: 8000})
    assert proc.listens_on(44) == 8000


def test_a_port_that_was_found_is_believed_for_a_minute_and_of_that_process_alone(
    proc: Proc,
) -> None:
    proc.put(41, inode=7)
    proc.listen(41, {7: 8000})
    assert proc.listens_on(41) == 8000
    proc.listen(41, {})
    proc.now += 59
    assert proc.listens_on(41) == 8000
    assert proc.tree.listens_on(41, {8001}) == 0
    proc.now += 2
    assert proc.listens_on(41) == 0

    proc.listen(41, {7: 8000})
    proc.now += 3
    assert proc.listens_on(41) == 8000
    # Another process that was given the same number.
    proc.put(41, started=6, inode=8)
    proc.now += 3
    assert proc.listens_on(41) == 0


def test_a_process_that_does_not_listen_yet_is_looked_at_again(proc: Proc) -> None:
    proc.put(41, inode=7)
    proc.listen(41, {})
    assert proc.listens_on(41) == 0
    proc.listen(41, {7: 8000})
    proc.now += 10
    assert proc.listens_on(41) == 8000
