"""Addresses at which programs of the project listen."""

import ipaddress
from contextlib import suppress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host.  False for every host name other than localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Whether the host is a number and no name."""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def reachable_host(host: str) -> str:
    """Return the host at which this machine reaches a program that listens on `host`, which may be all interfaces."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
