"""Addresses of the page: what can't be served is one line, and foreign names of the host are refused."""

import socket

import pytest

from hrvqvae.play.address import LOOPBACK, check_address, is_admitted, list_hosts
from hrvqvae.utils.errors import InputError
from tests.conftest import refused


def test_an_address_that_can_not_be_served_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for host, port in (("nohost.invalid", None), ("192.0.2.1", None), ("127.0.0.1", taken.getsockname()[1])):
            with pytest.raises(InputError, match=f"can't be served at --host {host}"):
                check_address(host, port)
    check_address("127.0.0.1", None)
    for port in (0, 65_536, 99_999):
        assert f"--port is {port}; it must be 1 to 65535" in refused(["play", "--port", port])
    assert "nohost.invalid" in refused(["play", "--host", "nohost.invalid"])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "me.example"])
def test_foreign_names_of_the_host_are_refused(host: str) -> None:
    hosts = list_hosts(host)
    assert not is_admitted("rebound.example", hosts)
    assert not is_admitted("", hosts)
    assert all(is_admitted(name, hosts) for name in (*LOOPBACK, host))
    assert is_admitted("192.0.2.7", hosts) == is_admitted(socket.gethostname(), hosts) == (host != "127.0.0.1")
