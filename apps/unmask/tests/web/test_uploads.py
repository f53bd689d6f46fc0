from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from unmask.web.problems import Problem
from unmask.web.settings import Settings
from unmask.web.uploads import clean_name, receive
from unmask.web.vault import Vault

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def request(body: bytes, chunks: list[int]) -> Request:
    """Return a request whose body arrives in chunks of these sizes."""
    parts = []
    for size in chunks:
        parts.append(body[:size])
        body = body[size:]
    parts.append(body)
    messages = iter(
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
        for index, part in enumerate(parts)
    )

    async def receive_one():
        return next(messages)

    headers = [(b"content-type", b"multipart/form-data; boundary=bound")]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive_one)


def body_of(name: str, data: bytes) -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    model = b'\r\n--bound\r\nContent-Disposition: form-data; name="model"\r\n\r\nint8'
    return b"--bound\r\n" + head.encode() + data + model + b"\r\n--bound--\r\n"


@given(
    data=st.binary(max_size=400), chunks=st.lists(st.integers(0, 60), max_size=30)
)  # fmt: skip
def test_what_arrives_is_what_was_sent_however_it_is_cut(tmp_path_factory, data, chunks):
    vault = Vault(tmp_path_factory.mktemp("vault"), 10_000)
    data = PNG + data.replace(b"--bound", b"")
    form = asyncio.run(receive(request(body_of("a.png", data), chunks), vault, Settings()))
    (part,) = form.parts
    assert part.problem is None and part.kind == "image" and part.name == "a.png"
    assert part.file is not None and part.file.path.read_bytes() == data
    assert form.fields == {"model": "int8"}
    form.discard()
    assert vault.files() == [] and vault.used == 0
    vault.close()


@given(st.integers(0, 330))
def test_uploads_that_stop_anywhere_leave_nothing(tmp_path_factory, cut):
    vault = Vault(tmp_path_factory.mktemp("vault"), 10_000)
    body = body_of("a.png", PNG)
    whole = len(body) - 4
    with pytest.raises(Problem) as caught:
        asyncio.run(receive(request(body[: min(cut, whole)], []), vault, Settings()))
    assert caught.value.code in {"malformed", "no_file"} and caught.value.status in {400, 422}
    assert vault.files() == [] and vault.used == 0
    vault.close()


def test_a_body_without_end_is_cut_off(tmp_path):
    vault = Vault(tmp_path, 10**6)
    sent = 0

    async def endless():
        nonlocal sent
        sent += 1
        start = body_of("a.png", PNG)[:150] if sent == 1 else b""
        return {"type": "http.request", "body": start + bytes(1000), "more_body": sent < 500}

    scope = {"type": "http", "method": "POST", "headers": request(b"", []).scope["headers"]}
    with pytest.raises(Problem) as caught:
        asyncio.run(receive(Request(scope, endless), vault, Settings(body_bytes=20_000)))
    assert (caught.value.status, caught.value.code) == (413, "too_large")
    assert vault.files() == []
    vault.close()


def test_a_slow_body_is_given_up(tmp_path):
    vault = Vault(tmp_path, 10**6)
    first = [{"type": "http.request", "body": body_of("a.png", PNG)[:150], "more_body": True}]

    async def slow():
        if not first:
            await asyncio.sleep(60)
        return first.pop()

    scope = {"type": "http", "method": "POST", "headers": request(b"", []).scope["headers"]}
    with pytest.raises(Problem) as caught:
        asyncio.run(receive(Request(scope, slow), vault, Settings(upload_seconds=0.2)))
    assert (caught.value.status, caught.value.code) == (408, "too_slow")
    assert vault.files() == []
    vault.close()


def test_a_body_that_stalls_is_given_up_early(tmp_path):
    vault = Vault(tmp_path, 10**6)
    first = [{"type": "http.request", "body": body_of("a.png", PNG)[:150], "more_body": True}]

    async def stalls():
        if not first:
            await asyncio.sleep(60)
        return first.pop()

    scope = {"type": "http", "method": "POST", "headers": request(b"", []).scope["headers"]}
    with pytest.raises(Problem) as caught:
        asyncio.run(receive(Request(scope, stalls), vault, Settings(stall_seconds=0.2)))
    assert (caught.value.status, caught.value.code) == (408, "too_slow")
    vault.close()


def test_a_declared_length_beyond_the_cap_is_refused_before_anything_is_stored(tmp_path):
    vault = Vault(tmp_path, 10**6)
    long = request(body_of("a.png", PNG), [])
    long.scope["headers"].append((b"content-length", b"20001"))
    with pytest.raises(Problem) as caught:
        asyncio.run(receive(long, vault, Settings(body_bytes=20_000)))
    assert (caught.value.status, caught.value.code) == (413, "too_large")
    vault.close()


def name_of(tmp_path, disposition: bytes) -> str:
    vault = Vault(tmp_path, 10**6)
    body = body_of("a.png", PNG).replace(b'filename="a.png"', disposition)
    form = asyncio.run(receive(request(body, []), vault, Settings()))
    form.discard()
    vault.close()
    problem = form.parts[0].problem
    return form.parts[0].name if problem is None else problem.code


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b"filename*=UTF-8''%e2%82%ac.png", "\u20ac.png"),
        (b"filename*=utf-8'en'a%20b.png", "a b.png"),
        (b"filename*=utf-8''..%2fa.png", "bad_name"),
        (b"filename*=utf-8''a%0ab.png", "bad_name"),
        (b"filename=\"b.png\"; filename*=utf-8''c.png", "b.png"),
        (b"filename=b.png", "b.png"),
    ],
)
def test_names_may_come_as_rfc_2231_has_them(tmp_path, disposition, name):
    assert name_of(tmp_path, disposition) == name


def test_a_name_of_thousands_of_characters_is_named_as_the_reason(tmp_path):
    with pytest.raises(Problem) as caught:
        name_of(tmp_path, b'filename="' + b"a" * 5000 + b'"')
    assert (caught.value.status, caught.value.code) == (422, "bad_name")


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u062e.png", "\U0001f468\u200d\U0001f467.png"])
def test_names_may_hold_the_joiners_that_their_script_needs(name):
    assert clean_name(name) == name


def test_a_full_folder_is_a_busy_server(tmp_path):
    vault = Vault(tmp_path, 50)
    form = asyncio.run(receive(request(body_of("a.png", PNG), []), vault, Settings()))
    assert form.parts[0].problem is not None and form.parts[0].problem.status == 429
    assert vault.files() == [] and vault.used == 0
    vault.close()


@given(st.text(max_size=80))
def test_names_are_plain_or_refused(name):
    try:
        clean = clean_name(name)
    except Problem as problem:
        assert problem.code == "bad_name" and problem.status == 422
    else:
        assert clean.strip() and not set("/\\\r\n\0\x7f\u202e\u2066") & set(clean)
