"""Where a server of ours may listen: on this machine, or on a network behind a password."""

import ipaddress
import os

__all__ = ["LEAST", "HostRefused", "host", "password", "port", "this_machine"]

LEAST = 12  # characters of a password; MLflow's own least


class HostRefused(ValueError):
    """A server would have been open to others without a password; it was not started."""


def host() -> str:
    """ROOTSTOCK_HOST, or 127.0.0.1."""
    return os.environ.get("ROOTSTOCK_HOST") or "127.0.0.1"


def port(default: int) -> int:
    """PORT, or the default.

    Raises:
        HostRefused: it is no port.
    """
    said = os.environ.get("PORT") or str(default)
    if not said.isdigit() or not 0 < int(said) < 65536:
        raise HostRefused(f"PORT is {said!r}; it is a whole number from 1 to 65535")
    return int(said)


def this_machine(address: str) -> bool:
    """Whether a server at this address is reached from this machine only.

    >>> [this_machine(a) for a in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.7", "box.example.org")]
    [True, True, True, False, False, False, False]
    """
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def password(variable: str, address: str, what: str) -> str | None:
    """The password of a server from the environment; on this machine it may be absent.

    Args:
        variable: of the environment; its value is in no message.
        address: where the server will listen.
        what: the server, for messages.

    Raises:
        HostRefused: other machines reach the address and there is no password, or a short one.
    """
    given = os.environ.get(variable)
    if not given and not this_machine(address):
        raise HostRefused(
            f"{what} would listen on {address}, where other machines reach it, without a password; nothing was "
            f"started. Set {variable} in the environment, or unset ROOTSTOCK_HOST to stay on this machine"
        )
    if given and len(given) < LEAST:
        raise HostRefused(f"{variable} has {len(given)} characters; give it {LEAST} or more")
    return given
