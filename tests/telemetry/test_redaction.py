"""What is never shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.provisional import urls

from tornado_persist.telemetry import redaction


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    redaction.forget()  # a test before may have had secrets of its own
    yield
    redaction.forget()


@pytest.mark.parametrize(
    "secret",
    [
        "postgresql://me:hush%40hush@host/db",
        "postgresql://me:hush/hush@host:5/db",
        "mysql://host/db?password=hush%2Bhush&ssl_key_password=hush2hush",
        "hush hush",
    ],
)
def test_a_password_is_hidden_in_each_of_its_forms(secret: str) -> None:
    redaction.hide([secret])
    for form in ("hush%40hush", "hush@hush", "hush/hush", "hush%2Bhush", "hush+hush", "hush hush", "hush%20hush"):
        said = redaction.mask(f'cannot log in with "{form}": try again')
        assert said in (f'cannot log in with "{form}": try again', 'cannot log in with "***": try again')
    assert "hush" not in redaction.mask(f"it was {secret}, was it?")


def test_the_password_of_an_unknown_url_is_hidden_too() -> None:
    assert redaction.mask("at postgres://me:hush@host:1/db?x=1 refused") == "at postgres://me:***@host:1/db?x=1 refused"
    assert redaction.mask("host=h password='hu sh' user=me") == "host=h password=*** user=me"
    assert redaction.mask("http://host:8001/path?sslpassword=hush&x=1") == "http://host:8001/path?sslpassword=***&x=1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        'password authentication failed for user "me"',
        "Access denied for user 'me'@'localhost' (using password: YES)",
        "serving http://127.0.0.1:8001, mail me@example.org",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    redaction.hide(["postgresql://me:hush@host/db", "abc"])
    assert redaction.mask(text) == text
    assert redaction.mask("abc") == "abc", "too short for a secret"


@given(urls(), st.text())
def test_no_text_is_too_odd(url: str, text: str) -> None:
    redaction.hide([url, text])
    redaction.mask(url + text)
    redaction.mask(text)
