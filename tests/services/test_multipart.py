from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.domain.errors import InvalidRequest, UnsupportedMediaType, ValidationFailed
from llamastead_server.services.multipart import MultipartBody

FORM = "multipart/form-data; boundary=XXX"


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.txt"', headers: str = "") -> bytes:
    return f"--XXX\r\nContent-Disposition: {disposition}\r\n{headers}\r\n".encode() + content + b"\r\n"


END = b"--XXX--\r\n"


async def split(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, content_type: str = FORM, size: int = 7) -> tuple[str, str | None, bytes]:
    file = await MultipartBody(content_type, split(body, size)).file()
    return file.filename, file.content_type, b"".join([data async for data in file.content])


@given(st.binary(max_size=300), st.integers(1, 50))
async def test_any_content_in_any_pieces_comes_through(content: bytes, size: int) -> None:
    if b"\r\n--XXX" in b"\r\n" + content:
        return
    assert await read(part(content) + END, size=size) == ("a.txt", None, content)


@pytest.mark.parametrize("content", [b"", b"x", b"--XX", b"\r\n--XX", b"\r\n--XY\r\n", b"\r\n\r\n", b"-" * 5000])
@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_content_that_looks_like_a_boundary_comes_through(content: bytes, size: int) -> None:
    assert (await read(part(content) + END, size=size))[2] == content


async def test_name_type_and_other_fields() -> None:
    other = part(b"yes", 'form-data; name="note"')
    disposition = 'form-data; name="file"; filename="Žluťoučký kůň.md"'
    body = other + part(b"hello", disposition, "Content-Type: text/markdown; x=y\r\n")
    assert await read(body + other + END) == ("Žluťoučký kůň.md", "text/markdown", b"hello")


@pytest.mark.parametrize(
    ("body", "error", "reason"),
    [
        (END, ValidationFailed, "no file in the field 'file'"),
        (part(b"x", 'form-data; name="other"; filename="a"') + END, ValidationFailed, "no file in the field 'file'"),
        (part(b"x", 'form-data; name="file"') + END, ValidationFailed, "not a file"),
        (part(b"x") + part(b"y") + END, InvalidRequest, "two files"),
        (part(b"x" * 100), InvalidRequest, "cut off"),
        (part(b"x")[:30], InvalidRequest, "cut off"),
        (b"", InvalidRequest, "cut off"),
        (b"no form at all", InvalidRequest, "malformed"),
        (part(b"x", headers="X: " + "y" * 20_000 + "\r\n") + END, InvalidRequest, "header size"),
        (part(b"x", 'form-data; name="n"') * 200 + part(b"x") + END, InvalidRequest, "100 parts"),
    ],
)
async def test_a_wrong_form_is_refused_with_a_reason(body: bytes, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        await read(body)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/mixed; boundary=XXX"])
async def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="multipart/form-data"):
        await read(part(b"x") + END, content_type)


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 300}"])
async def test_an_unusable_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        await read(part(b"x") + END, content_type)


FILES = 'form-data; name="files"; filename="{}"'


async def names_and_contents(body: bytes, size: int, *, skip: bool = False) -> list[tuple[str, bytes]]:
    form = MultipartBody(FORM, split(body, size), "files")
    read = []
    while (file := await form.next_file()) is not None:
        read.append((file.filename, b"" if skip else b"".join([data async for data in file.content])))
    return read


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(1, 50))
async def test_several_files_come_one_after_another(contents: list[bytes], size: int) -> None:
    if any(b"\r\n--XXX" in b"\r\n" + content for content in contents):
        return
    body = b"".join(part(content, FILES.format(number)) for number, content in enumerate(contents)) + END
    assert await names_and_contents(body, size) == [(str(n), content) for n, content in enumerate(contents)]
    assert await names_and_contents(body, size, skip=True) == [(str(n), b"") for n in range(len(contents))]


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_kept_field_is_known_once_it_has_come(size: int) -> None:
    body = part(b"early", 'form-data; name="first"') + part(b"x") + part(b"late", 'form-data; name="second"') + END
    form = MultipartBody(FORM, split(body, size), fields=["first", "second", "third"])
    file = await form.file()
    assert form.value("first") == "early"
    assert b"".join([data async for data in file.content]) == b"x"
    assert (form.value("second"), form.value("third")) == ("late", None)


async def test_a_kept_field_is_bounded() -> None:
    body = part(b"y" * 11_000, 'form-data; name="note"') + part(b"x") + END
    with pytest.raises(InvalidRequest, match="longer than 10240 bytes"):
        await MultipartBody(FORM, split(body, 1000), fields=["note"]).file()
