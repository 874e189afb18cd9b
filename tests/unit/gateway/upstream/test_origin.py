"""Is a replica's URL read strictly, and is a mistake explained?"""

import pytest

from gateway.upstream.client import Origin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8001", Origin("127.0.0.1", 8001, is_tls=False, base_path="")),
        ("http://replica-0.pool:8001/", Origin("replica-0.pool", 8001, is_tls=False, base_path="")),
        ("http://host/prefix/", Origin("host", 80, is_tls=False, base_path="/prefix")),
        ("https://host/a/b", Origin("host", 443, is_tls=True, base_path="/a/b")),
        ("https://host:8443", Origin("host", 8443, is_tls=True, base_path="")),
        ("http://[::1]:8001/v1", Origin("::1", 8001, is_tls=False, base_path="/v1")),
        ("HTTP://Host_1:1", Origin("host_1", 1, is_tls=False, base_path="")),
    ],
)
def test_a_url_is_read(url: str, expected: Origin) -> None:
    assert Origin.parse(url) == expected


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert Origin.parse("http://[2001:db8::1]:8001").address == "[2001:db8::1]:8001"
    assert Origin.parse("http://host").address == "host:80"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8001",
        "//host:8001",
        "ftp://host",
        "http://",
        "http:///v1",
        "http://:8001",
        "http://host:0",
        "http://host:65536",
        "http://host:port",
        "http://host:-1",
        "http://[::1",
        "http://[fe80::1%25eth0]:1",
        "http://a..b",
        "http://" + 64 * "a",
        "http://host?query",
        "http://host/?",
        "http://host/#part",
        "http://host/#",
        "http://ho st",
        " http://host",
        "http://host/a\r\nx-injected: 1",
        "http://host/\ttab",
        "http://host/\x7f",
        "http://höst",
        "http://host/ä",
    ],
)
def test_anything_else_is_refused_with_advice(url: str) -> None:
    with pytest.raises(ValueError, match="write http://host:port or https://host:port/path"):
        Origin.parse(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="user name or a password") as caught:
        Origin.parse("http://user:hunter2@host:1")
    assert "hunter2" not in str(caught.value)
