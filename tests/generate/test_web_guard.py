"""Who is answered: programs of this machine, whoever has the key, and no page of another site."""

from __future__ import annotations

import pytest

from megatron_patch.generate.web_guard import Guard, RefusedError, check_is_json

LOCAL, OPEN, KEYED = Guard("", is_local=True), Guard("", is_local=False), Guard("a key", is_local=True)


def status(guard, **headers):
    """0 if the request is looked at."""
    try:
        guard.check(headers)
    except RefusedError as error:
        return error.status
    return 0


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.0.0.1"])
def test_this_machine_s_names_are_answered(host):
    """Under any port: a tunnel has one of its own."""
    assert status(LOCAL, host=host) == status(LOCAL, host=host, origin="http://localhost:3000") == 0


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::"])
def test_a_name_that_was_led_here_is_not(host):
    """DNS rebinding: the page's own name leads to 127.0.0.1, so its requests are no cross-site ones. It has no key."""
    assert status(LOCAL, host=host) == 403
    assert status(OPEN, host=host) == 0, "whoever listens for others is asked under names that it does not know"
    assert status(KEYED, host=host) == 401
    assert status(KEYED, host=host, authorization="Bearer a key") == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://evil.example:8000", "http://[", ""])
def test_pages_of_other_sites_are_not_answered(origin):
    assert status(LOCAL, host="localhost:8000", origin=origin) == 403
    assert status(OPEN, host="gpu7:8000", origin=origin) == 403
    assert status(KEYED, host="x", origin=origin, authorization="Bearer a key") == 0


def test_a_page_of_the_server_s_own_name_is():
    assert status(OPEN, host="gpu7:8000", origin="http://gpu7:8000") == 0


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "text/plain; application/json"])
def test_a_body_that_browsers_send_unasked_is_refused(kind):
    with pytest.raises(RefusedError, match="curl -H 'Content-Type: application/json'") as caught:
        check_is_json({} if kind is None else {"content-type": kind})
    assert caught.value.status == 415


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_is_read(kind):
    check_is_json({"content-type": kind})
