"""URLs as a configuration writes them, and as a request has them."""

from __future__ import annotations

import pytest

from gateway.config.url import URL


@pytest.mark.parametrize(
    ("text", "shown", "target"),
    [
        ("https://example.com", "https://example.com/", "/"),
        ("https://Example.com:443/a.srs?x=1#there", "https://example.com/a.srs?x=1", "/a.srs?x=1"),
        ("http://[2001:db8::1]:8080/a b", "http://[2001:db8::1]:8080/a%20b", "/a%20b"),
        ("http://müller.example/ü%20", "http://xn--mller-kva.example/%C3%BC%20", "/%C3%BC%20"),
    ],
)
def test_reads(text: str, shown: str, target: str) -> None:
    found = URL.parse(text)
    assert (str(found), found.target) == (shown, target)


@pytest.mark.parametrize(
    "text", ["", "example.com/a", "ftp://example.com/", "http://", "http://a:99999/", "http://[::1/", "http://a b/"]
)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        URL.parse(text)


def test_credentials_stay_with_their_host_and_are_not_shown() -> None:
    found = URL.parse("https://us%40er:se:cret@example.com/a")
    assert found.credentials == "Basic dXNAZXI6c2U6Y3JldA=="
    assert "cret" not in str(found)
    assert found.join("/b").credentials == found.credentials
    for elsewhere in ("//other.example/b", "http://example.com/b", "https://example.com:444/b"):
        assert found.join(elsewhere).credentials == ""
