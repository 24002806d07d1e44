"""Taking the port, before anything expensive is done for it."""

from __future__ import annotations

import errno
import socket

from armillary.errors import ArmillaryError, Code


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not yet accepting.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT where the port is taken, not allowed, or the host is not ours.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT, f"server.host must be an address of this machine, given {host!r}: {error}", "host"
        ) from None
    # "localhost" is ::1 first on some machines, and many clients try only 127.0.0.1.
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)  # bound but silent sockets can be bound twice; a listening one cannot
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients on this machine reach the socket."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refused(host: str, port: int, error: OSError) -> ArmillaryError:
    if error.errno == errno.EADDRINUSE:
        message = (
            f"server.port must be free, given {port} on {host}, which another process listens on, so stop that one, "
            "choose another port, or choose 0 for any free one"
        )
        return ArmillaryError(Code.INVALID_DEPLOYMENT, message, "port")
    if error.errno == errno.EACCES:
        message = f"server.port must be allowed to this user, given {port}, so choose one above 1023"
        return ArmillaryError(Code.INVALID_DEPLOYMENT, message, "port")
    return ArmillaryError(
        Code.INVALID_DEPLOYMENT, f"server.host must be an address of this machine, given {host!r}: {error}", "host"
    )
