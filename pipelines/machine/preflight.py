"""What must be true of the machine before the server starts, checked within two seconds. stdlib and psutil.

PyTriton's server needs its interpreter's libpython, which its stubs load. It needs free ports: it would wait
a minute for a taken one. And it needs room in /dev/shm: a stub that runs out of it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import platform
import re
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SHM = Path("/dev/shm")
MIN_GLIBC = (2, 35)
# Triton keeps a region for each stub. It grows with the largest requests and answers and never shrinks. There
# must be room for four of the largest, as for the two stubs of a task's endpoint and that of its stream.
SHM_COPIES = 4
MIN_ANSWER_BYTES = 32 << 20
MAX_ANSWER_BYTES = 512 << 20
# Of a server's folder, which its Triton names on its command line; the number is the server's process.
FOLDER_PREFIX = "trivid-"
LONGEST_COMMAND = 60
ANY_ADDRESS = ("0.0.0.0", "::")
TEMP_VARIABLES = ("TMPDIR", "TEMP", "TMP")
# Linux takes no longer path for a socket; PyTriton's are named after endpoints.
SOCKET_PATH_BYTES = 107
SOCKET_NAME = "{}_0_0-server.sock"
# The name has the number of the server's process, and eight letters of Python's.
LONGEST_FOLDER = f"{FOLDER_PREFIX}{1 << 22}-{'x' * 8}"
# What PyTriton copies there.
TRITON_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's outcome; `problem` says what is wrong and what to do, and is empty if all is well.

    A `warning` stops nothing.
    """

    name: str
    detail: str = ""
    warning: str = ""
    problem: str = ""


def check_python() -> Finding:
    """Python 3.11 or 3.12: PyTriton needs numpy below 2, which has no wheels for later ones."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding(name="python", detail=version)
    return Finding(name="python", problem=f"Python {version} is not supported: use 3.11 or 3.12")


def check_glibc() -> Finding:
    """glibc 2.35 or later, for which PyTriton's wheels are built."""
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0, 0)
    if numbers >= MIN_GLIBC:
        return Finding(name="glibc", detail=version)
    return Finding(
        name="glibc", problem=f"glibc 2.35 is needed (Debian 12, Ubuntu 22.04), found {name} {version}"
    )


def libpython_dirs() -> list[Path]:
    """Folders that may hold this interpreter's shared library, the likeliest first."""
    places = [
        sysconfig.get_config_var("LIBDIR"),
        Path(sys.base_prefix) / "lib",
        Path(os.path.realpath(sys.executable)).parent.parent / "lib",
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    ]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    places += [f"/usr/lib/{multiarch}", "/usr/lib64", "/usr/local/lib"]
    return list(dict.fromkeys(Path(place) for place in places if place and Path(place).is_dir()))


def check_libpython(dirs: Sequence[Path] | None = None) -> Finding:
    """Triton's Python stubs load libpython; an interpreter built without it cannot serve."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in dirs or libpython_dirs():
        if (found := folder / f"libpython{version}.so.1.0").is_file():
            return Finding(name="libpython", detail=str(found))
    return Finding(
        name="libpython",
        problem=f"libpython{version}.so.1.0 was not found for {sys.executable}: on Debian and Ubuntu "
        f"`apt-get install libpython{version}`, with pyenv `PYTHON_CONFIGURE_OPTS=--enable-shared pyenv "
        "install`, or use the Python that uv or conda installs",
    )


def address_of(host: str) -> str:
    """The numeric address of a host of this machine: of a name, its first one of IPv4, which Triton needs.

    Raises OSError or UnicodeError if it cannot be listened on.
    """
    address = _listen(host, 0)
    if "%" in address:
        raise OSError(f"Triton takes no address with a zone, such as %{address.partition('%')[2]}")
    return address


def check_host(host: str) -> Finding:
    """Whether `host` is an address of this machine, and who can reach it."""
    name = f"host {host}"
    try:
        address = address_of(host)
    except (OSError, UnicodeError) as error:
        wrong = f"{host!r} is not an address of this machine that can be listened on ({error})"
        way_out = "choose one with --host: 127.0.0.1, ::1, 0.0.0.0 for all of its IPv4 addresses, :: for all"
        return Finding(name=name, problem=f"{wrong}: {way_out}")
    if ipaddress.ip_address(address).is_loopback:
        return Finding(name=name, detail="reached from this machine only")
    anyone = f"anyone who reaches this machine at {host} may use the server, without a password"
    return Finding(name=name, warning=f"{anyone}: keep the address private, with a proxy before it")


def check_port(host: str, port: int, purpose: str) -> Finding:
    """Whether `host:port` can be listened on now, and if not, who does; `host` is this machine's."""
    name = f"{purpose} port {port}"
    try:
        _listen(host, port)
    except OSError as error:
        holder = _holder(host, port) if error.errno == errno.EADDRINUSE else ""
        way_out = f"{holder}choose another with --{purpose}-port"
        return Finding(name=name, problem=f"cannot listen on {host}:{port} ({error.strerror}): {way_out}")
    return Finding(name=name, detail="free")


def _listen(host: str, port: int) -> str:
    """Listen for a moment; the numeric address. Raises OSError or UnicodeError where that cannot be."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
        address: str = probe.getsockname()[0]
        return address


def _holder(host: str, port: int) -> str:
    """Which process listens on a port, and what to do about it; empty if the system does not tell."""
    addresses = {*ANY_ADDRESS, socket.getaddrinfo(host, port)[0][4][0]}
    with contextlib.suppress(psutil.Error, OSError):
        listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        there = [
            one.pid
            for one in listening
            if one.laddr and one.laddr.port == port and (host in ANY_ADDRESS or one.laddr.ip in addresses)
        ]
        if len(there) == 1 and there[0]:
            return _told(psutil.Process(there[0]))
    return ""


def _told(holder: psutil.Process) -> str:
    words = " ".join([holder.name(), *holder.cmdline()[1:]])
    told = f"process {holder.pid} ({words[:LONGEST_COMMAND].rstrip()}) has it"
    server = re.search(rf"/{FOLDER_PREFIX}([0-9]{{1,9}})-", words)
    if server is None:
        return f"{told}: stop it, or "
    if psutil.pid_exists(int(server[1])):
        return f"{told}, of the Trivid server with process {server[1]}: stop that, or "
    # A start as its user would have ended it.
    ended = f"it ends within a minute: wait, `kill -9 {holder.pid}`, or "
    return f"{told}, left by a Trivid server that was killed: {ended}"


def check_temp(name_length: int, max_media_bytes: int) -> Finding:
    """Whether Triton's programs can run in the temp folder, and its sockets have room.

    Args:
        name_length: of the longest name of an endpoint, after which its sockets are named.
    """
    asked = next((value for name in TEMP_VARIABLES if (value := os.environ.get(name))), "")
    folder = asked
    try:
        folder = tempfile.gettempdir()
        # Python takes another folder if no file can be made in the one that was asked for.
        if asked and not os.path.samefile(asked, folder):
            raise OSError("no file can be made in it")
        wrong = _wrong_with_temp(folder, name_length, TRITON_BYTES + max_media_bytes)
    except OSError as error:
        folder, wrong = asked or folder, f"cannot be used ({error})"
    if not wrong:
        return Finding(name="temp folder", detail=folder)
    way_out = "set TMPDIR to a folder on this machine, such as /tmp or /var/tmp"
    return Finding(name="temp folder", problem=f"the temp folder {folder!r} {wrong}: {way_out}")


def _wrong_with_temp(folder: str, name_length: int, needed_bytes: int) -> str:
    """What is; empty if nothing. Raises OSError where a folder or a socket cannot be made."""
    # PyTriton starts Triton by words between blanks, and Triton its stubs by way of a shell.
    if strange := re.search(r"[^\w./+=:,@%~-]", folder):
        return f"has {strange[0]!r} in its path, with which Triton cannot start"
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return "is mounted noexec, and Triton's programs are to run there"
    if (free := shutil.disk_usage(folder).free) < needed_bytes:
        return f"has {free >> 20} MiB free, {needed_bytes >> 20} MiB are needed"
    longest = f"{folder}/{LONGEST_FOLDER}/triton/{SOCKET_NAME.format('x' * name_length)}"
    if (excess := len(os.fsencode(longest)) - SOCKET_PATH_BYTES) > 0:
        return f"has a path that is {excess} bytes too long for Triton's sockets in it"
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as made, socket.socket(socket.AF_UNIX) as probe:
        probe.bind(f"{made}/s")
    return ""


def shm_needed_bytes(max_media_bytes: int) -> int:
    """Room in /dev/shm for one medium and one answer of the smallest size."""
    return SHM_COPIES * (max_media_bytes + MIN_ANSWER_BYTES)


def shm_free_bytes() -> int:
    """Free bytes of /dev/shm; 0 where there is none."""
    return shutil.disk_usage(SHM).free if SHM.is_dir() else 0


def answer_limit_bytes(max_media_bytes: int) -> int:
    """The largest answer that /dev/shm has room for beside a medium, at most 512 MiB."""
    room = shm_free_bytes() // SHM_COPIES - max_media_bytes
    return max(MIN_ANSWER_BYTES, min(MAX_ANSWER_BYTES, room))


def check_shm(max_media_bytes: int) -> Finding:
    """SIGBUS kills a stub that finds /dev/shm full, so refuse before that."""
    needed, free = shm_needed_bytes(max_media_bytes), shm_free_bytes()
    if free >= needed:
        return Finding(name="/dev/shm", detail=f"{free >> 20} MiB free")
    return Finding(
        name="/dev/shm",
        problem=f"/dev/shm has {free >> 20} MiB free, {needed >> 20} MiB are needed for media of "
        f"{max_media_bytes >> 20} MiB: enlarge it (docker run --shm-size=1g, compose shm_size: 1gb, "
        "Kubernetes: an emptyDir with medium Memory) or lower --max-media-mb",
    )


def check_nvdec(device: str) -> Finding:
    """If a GPU is asked for, NVIDIA's decoding library must load."""
    if device != "cuda":
        return Finding(name="nvdec", detail=f"not checked: --device is {device}")
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        return Finding(
            name="nvdec",
            problem=f"{error}: in a container set NVIDIA_DRIVER_CAPABILITIES=compute,video,utility; "
            "on a host install the NVIDIA driver; or run with --device cpu",
        )
    return Finding(name="nvdec", detail="libnvcuvid.so.1 loads")
