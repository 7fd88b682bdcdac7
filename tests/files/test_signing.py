"""Signed URLs against botocore's own, byte for byte."""

from datetime import UTC, datetime
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdoverd.storage.credentials import Credentials
from holdoverd.storage.signing import MAX_EXPIRES_S, Signer

KEYS = Credentials("AKID/with+odd=characters", "secret")
NOW = 1_700_000_000.0


def signer(endpoint: str = "https://s3.example.org", addressing: Any = "path") -> Signer:
    return Signer(endpoint, "eu-central-1", "files", addressing, KEYS)


def botocore_url(url: str, method: str, headers: dict[str, str], expires_s: int) -> str:
    from botocore import auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Theirs

    request = AWSRequest(method=method, url=url, headers=headers)
    keys = Theirs(KEYS.access_key, KEYS.secret_key)
    at = datetime.fromtimestamp(NOW, UTC)
    with mock.patch.object(auth, "get_current_datetime", return_value=at):
        auth.S3SigV4QueryAuth(keys, "s3", "eu-central-1", expires=expires_s).add_auth(request)
    return str(request.url)


def signature(url: str) -> str:
    return parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]


@settings(max_examples=100, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT", "DELETE"]),
    number=st.integers(1, 10_000),
    upload=st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=40),
    size=st.integers(0, 2**40),
    expires_s=st.integers(1, MAX_EXPIRES_S),
    endpoint=st.sampled_from(
        ["https://s3.example.org", "http://127.0.0.1:8333", "https://S3.example.org:443"]
    ),
)
def test_signature_is_botocores(
    method: str, number: int, upload: str, size: int, expires_s: int, endpoint: str
) -> None:
    headers = {"content-length": str(size), "x-amz-checksum-sha256": "q83vEjRWeJA="}
    ours = signer(endpoint).url(
        method,
        "f/abc",
        now_s=NOW,
        expires_s=expires_s,
        query={"partNumber": str(number), "uploadId": upload},
        headers=headers,
    )
    from urllib.parse import quote

    bare = f"{endpoint.lower().removesuffix(':443')}/files/f/abc"
    bare += f"?partNumber={number}&uploadId={quote(upload, safe='~')}"
    assert signature(ours) == signature(botocore_url(bare, method, headers, expires_s))


def test_disposition_with_any_characters_is_signed_as_botocore_signs_it() -> None:
    from urllib.parse import quote

    disposition = "attachment; filename=\"a b.txt\"; filename*=UTF-8''%C3%A4%20b.txt"
    ours = signer().url(
        "GET",
        "f/abc",
        now_s=NOW,
        expires_s=60,
        query={"response-content-disposition": disposition},
    )
    bare = "https://s3.example.org/files/f/abc?response-content-disposition="
    assert signature(ours) == signature(botocore_url(bare + quote(disposition), "GET", {}, 60))
    assert parse_qs(urlsplit(ours).query)["response-content-disposition"] == [disposition]


def test_virtual_addressing_puts_the_bucket_before_the_host() -> None:
    url = signer(addressing="virtual").url("GET", "f/abc", now_s=NOW, expires_s=60)
    assert url.startswith("https://files.s3.example.org/f/abc?")
    theirs = botocore_url("https://files.s3.example.org/f/abc", "GET", {}, 60)
    assert signature(url) == signature(theirs)
    assert signer(addressing="virtual").origin == "https://files.s3.example.org"
    assert signer().origin == "https://s3.example.org"


@pytest.mark.parametrize(("asked", "signed"), [(0, 1), (-5, 1), (10**9, MAX_EXPIRES_S)])
def test_lifetime_stays_within_what_s3_takes(asked: int, signed: int) -> None:
    url = signer().url("GET", "f/abc", now_s=NOW, expires_s=asked)
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == [str(signed)]


def test_no_key_shows_in_what_is_printed() -> None:
    assert "secret" not in repr(signer()) + repr(KEYS)
    assert "AKID" not in repr(signer()) + repr(KEYS)
