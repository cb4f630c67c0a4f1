"""Where the page is served, and the host names that requests may use for it."""

import ipaddress
import socket

from hrvqvae.utils.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_address(host: str, port: int | None) -> None:
    """Raise InputError if a page can't be served at an address of this machine; None is any
    port.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"--host {host}" + (f" --port {port}" if port else "")
        raise InputError(
            f"the page can't be served at {where} ({error}): choose another"
        ) from error


def list_hosts(host: str) -> tuple[str, ...]:
    """Return the host names that requests may use for a page that is served at an address, in small
    letters.
    """
    names = () if host in LOOPBACK else (host, socket.gethostname(), socket.getfqdn())
    return *LOOPBACK, *(name.lower() for name in names)


def is_admitted(host: str, hosts: tuple[str, ...]) -> bool:
    """Return whether a request may use this name of the host.

    A foreign site can give its domain the address of this machine (DNS rebinding), so other names
    are refused. An address in place of a name is safe, and admitted if the page is served to other
    machines.
    """
    try:
        return host.lower() in hosts or (hosts != LOOPBACK and bool(ipaddress.ip_address(host)))
    except ValueError:
        return False
