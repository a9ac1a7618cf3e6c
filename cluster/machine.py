"""What this machine has: cores, memory, devices, disk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil

GIB = 2**30
_CONNECT_S = 5.0
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Cores, memory and devices of one machine; sizes in bytes."""

    cores: int
    """Cores that this process may run on."""
    memory: int
    """Memory that is free now, within the limit of the container if there is one."""
    shared_memory: int
    """Free in /dev/shm."""
    disk: int
    """Free where the run directory will be."""
    gpus: tuple[int, ...] = ()
    """Memory of each visible GPU."""


def this_machine(output_dir: Path) -> Machine:
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory=available_memory(),
        shared_memory=psutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        disk=free_disk(output_dir),
        gpus=visible_gpus(),
    )


def available_memory() -> int:
    """Bytes that can be allocated without swapping: the system's figure, or what the container's limit leaves."""
    available = psutil.virtual_memory().available
    limit = _read_bytes(_CGROUP / "memory.max")
    used = _read_bytes(_CGROUP / "memory.current")
    return available if limit is None or used is None else min(available, max(limit - used, 0))


def free_disk(path: Path) -> int:
    """Free bytes on the file system that holds, or will hold, `path`."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def visible_gpus() -> tuple[int, ...]:
    """Memory in bytes of each NVIDIA GPU that CUDA programs may use, as nvidia-smi tells; empty without a driver."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.split(",") for line in listing.splitlines() if line.strip()]
    memory = {key: int(mib) * 2**20 for i, (uuid, mib) in enumerate(rows) for key in (str(i), uuid.strip())}
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(str(i) for i in range(len(rows))))
    return tuple(memory[name.strip()] for name in chosen.split(",") if name.strip() in memory)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


def is_listening(address: str) -> bool:
    """Whether something answers at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
            return True
    except (OSError, ValueError):
        return False


def is_local_host(host: str) -> bool:
    """Whether a host's name or address is one of this machine's own."""
    found = _addresses(host)
    own = {address.address.partition("%")[0] for all in psutil.net_if_addrs().values() for address in all}
    return bool(found) and all(ip in own or ip_address(ip).is_loopback for ip in found)


def is_same_address(one: str, other: str) -> bool:
    """Whether two `host:port` are the same, though one may have the host's name and the other its number."""
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    return one == other or (port == other_port and bool(_addresses(host) & _addresses(other_host)))


def _addresses(host: str) -> set[str]:
    """Of a host by its name or address; none when it is unknown."""
    try:
        return {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host.strip("[]"), None)}
    except (OSError, UnicodeError):
        return set()


def _read_bytes(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
