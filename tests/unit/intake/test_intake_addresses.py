"""Where a webhook may go: every way to write an address behind the wall, and names that change what they stand for."""

import pytest

from foundry.errors import UnsafeAddress
from foundry.intake.addresses import is_public, public_addresses, require_public


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "ftp://example.org/", "https://", "https:///x", "example.org", "https://localhost/x",
        "https://a.localhost/", "https://printer.local/", "https://metadata.google.internal/", "https://127.0.0.1/",
        "https://127.1/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://[::1]/",
        "https://[::ffff:127.0.0.1]/", "https://[::ffff:a9fe:a9fe]/", "https://[64:ff9b::7f00:1]/", "https://10.0.0.1/",
        "https://192.168.1.1/", "https://172.16.0.1/", "https://169.254.169.254/latest/meta-data", "https://[fe80::1]/",
        "https://[fd00::1]/", "https://0.0.0.0/", "https://224.0.0.1/", "https://100.64.0.1/",
        "https://[2002:7f00:1::]/", "https://user@example.org/",
        "https://user:word@example.org/", "https://example.org/#x", "https://exa mple.org/",
        "https://example.org/\r\nX: y", "https://[::1", "https://example.org:99999/",
    ],
)  # fmt: skip
def test_an_address_is_refused_when_it_is_not_plainly_public(url: str) -> None:
    with pytest.raises(UnsafeAddress):
        require_public(url)


@pytest.mark.parametrize("url", ["https://example.org/", "https://example.org:8443/a?b=c", "https://8.8.8.8/hook"])
def test_a_public_address_is_taken(url: str) -> None:
    require_public(url)


def test_an_operator_can_allow_private_addresses() -> None:
    require_public("http://10.0.0.1:8080/hook", private=True)
    with pytest.raises(UnsafeAddress):
        require_public("ftp://10.0.0.1/", private=True)


def test_a_name_is_refused_when_one_of_its_addresses_is_private() -> None:
    assert public_addresses("a.example", 443, lookup=lambda *_: ["8.8.8.8"]) == ["8.8.8.8"]
    for answer in (["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["fe80::1%eth0"]):
        with pytest.raises(UnsafeAddress, match="not public"):
            public_addresses("a.example", 443, lookup=lambda *_, given=answer: given)
    assert public_addresses("a.example", 443, private=True, lookup=lambda *_: ["127.0.0.1"]) == ["127.0.0.1"]


def test_is_public_looks_into_wrapped_addresses() -> None:
    assert is_public("2001:4860:4860::8888") and is_public("::ffff:8.8.8.8") and is_public("64:ff9b::808:808")
    assert not is_public("not an address")
