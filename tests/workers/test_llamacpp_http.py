"""The client for llama.cpp's server."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.workers.llamacpp_http import ChunkDecoder


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 400), max_size=6))
def test_a_chunked_body_is_the_same_however_it_arrives(chunks: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    decoder = ChunkDecoder()
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    body = b"".join(decoder.feed(wire[start:end]) for start, end in pairwise(edges))
    assert body == b"".join(chunks)
    assert decoder.ended
