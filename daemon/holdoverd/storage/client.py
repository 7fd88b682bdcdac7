"""The calls that the daemon and the workers make to storage: boto3 in threads, bounded.

Signing needs no call and is not async. Everything else runs in one of `THREADS` threads with
timeouts, and raises StorageUnavailable where storage cannot be reached or fails, StorageRefused
where it answers that it will not. What is expected to be missing at times (an upload that has been
completed, a key that has been deleted) is a result, not an error.

boto3 is imported by the first call: it takes a third of a second and 25 MiB, which a daemon without
storage should not pay, and a start not wait for.
"""

import base64
import email.utils
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import trio

from holdoverd.errors import StorageRefused, StorageUnavailable
from holdoverd.ids import since_boot_s
from holdoverd.settings import StorageSettings
from holdoverd.storage.credentials import Credentials
from holdoverd.storage.disk import Disk
from holdoverd.storage.signing import Signer

T = TypeVar("T")

log = logging.getLogger(__name__)

# Calls at a time. They are short, except completing a large upload.
THREADS = 16
CONNECT_TIMEOUT_S = 3
# A store that assembles ten thousand parts may take half a minute.
READ_TIMEOUT_S = 60
MAX_WAITING = 1_000


# A URL signed by a clock that is further off may not be valid yet, or not any more. S3 itself lets
# 15 minutes pass for its own calls, and so would not say it.
MAX_SKEW_S = 30.0
# How long a look at storage's clock is believed.
CLOCK_LOOK_S = 60.0

# Objects are stored inert, for stores that heed no `response-…` in a URL.
INERT_TYPE = "application/octet-stream"

# Not NoSuchBucket: where that is missing, nothing can be said about what was in it. A HEAD has no
# body, so it says 404 for either; only the sweeper acts on that, and it has listed the bucket first.
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "NotFound", "404"})
# For removing it is as good as any.
_GONE = _MISSING | {"NoSuchBucket"}
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that storage holds. `etag` without quotes; `sha256` in hex, None where not kept."""

    number: int
    size: int
    etag: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that storage holds. `checksum` is its SHA-256 as storage gives it.

    Base64 of the digest, or ``…-N``, the digest of N parts' digests; None where it keeps none.
    """

    size: int
    etag: str
    checksum: str | None
    modified_at: int


@dataclass(frozen=True, slots=True)
class StoredKey:
    key: str
    size: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that is neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_at: int


class Store:
    """One bucket. Safe from any trio task; needs no closing.

    `clock` gives seconds since the epoch, as `time.time`. `disk`: what `settle` waits for.
    """

    def __init__(
        self,
        settings: StorageSettings,
        credentials: Credentials,
        clock: Callable[[], float] = time.time,
        disk: Disk | None = None,
    ) -> None:
        self.endpoint = settings.endpoint
        self.public_endpoint = settings.public_endpoint or settings.endpoint
        self.bucket = settings.bucket
        self._settings = settings
        self._credentials = credentials
        self._clock = clock
        self._disk = disk
        self._limiter = trio.CapacityLimiter(THREADS)
        self._making = threading.Lock()
        self._made: Any = None
        # Storage's time of day, and when it was seen: on a clock that nobody sets, so that ours being
        # set is seen at once, and forgotten at once when it is right again.
        self._its_time_s: float | None = None
        self._seen_at_s = 0.0
        outside, inside = (
            Signer(at, settings.region, settings.bucket, settings.addressing, credentials)
            for at in (self.public_endpoint, self.endpoint)
        )
        self._signers = {False: outside, True: inside}

    @classmethod
    def open(
        cls, settings: StorageSettings, credentials: Credentials | None, state_dir: Path | None
    ) -> "Store | None":
        """The configured store; None where there is none. `state_dir` None: nothing is kept."""
        if not settings.endpoint or credentials is None:
            return None
        disk = None if state_dir is None else Disk.below(settings.endpoint, state_dir)
        return cls(settings, credentials, disk=disk)

    # -- signing --------------------------------------------------------------------------------

    @property
    def public_origin(self) -> str:
        """Where clients' URLs lead to; what a page's policy has to name."""
        return self._signers[False].origin

    def sign(
        self,
        method: str,
        key: str,
        expires_s: int,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        inside: bool = False,
    ) -> str:
        """A URL for clients, for any operation on `key` ("": on the bucket).

        `inside`: for a process on this host, which reaches storage as the daemon does.
        """
        return self._signers[inside].url(
            method, key, now_s=self._clock(), expires_s=expires_s, query=query, headers=headers
        )

    def sign_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        size: int,
        sha256: str | None,
        expires_s: int,
        *,
        inside: bool = False,
    ) -> tuple[str, dict[str, str]]:
        """(URL, headers to send with it) for a PUT of exactly `size` bytes as part `number`.

        With `sha256` (hex) also of exactly those bytes. The length is signed too, and not among the
        headers: every HTTP client sends it by itself, and browsers let nobody else set it.
        """
        headers = {} if sha256 is None else {"x-amz-checksum-sha256": _base64(sha256)}
        query = {"partNumber": str(number), "uploadId": upload_id}
        signed = {**headers, "content-length": str(size)}
        url = self.sign("PUT", key, expires_s, query=query, headers=signed, inside=inside)
        return url, headers

    def sign_get(
        self,
        key: str,
        disposition: str,
        content_type: str,
        expires_s: int,
        *,
        inside: bool = False,
    ) -> str:
        """A URL to read `key`, answered with this Content-Disposition and Content-Type."""
        query = {
            "response-content-disposition": disposition,
            "response-content-type": content_type,
        }
        return self.sign("GET", key, expires_s, query=query, inside=inside)

    async def check_clock(self) -> None:
        """StorageUnavailable when the clocks are too far apart for URLs to be any good.

        Asks storage where it has not answered anything for a minute; else costs nothing.
        """
        if self._its_time_s is None or since_boot_s() - self._seen_at_s > CLOCK_LOOK_S:
            await self.is_there()
        if self._its_time_s is None:
            return  # it sends no date
        skew_s = self._its_time_s + since_boot_s() - self._seen_at_s - self._clock()
        if abs(skew_s) > MAX_SKEW_S:
            raise StorageUnavailable(
                f"The clock of this host is {abs(skew_s):.0f} s"
                f" {'behind' if skew_s > 0 else 'ahead of'} that of storage"
                f" ({self.endpoint}), so URLs signed here would not be valid there. Set the clock"
                " (`timedatectl` shows whether it is kept in step), then try again."
            )

    # -- the bucket -----------------------------------------------------------------------------

    async def is_there(self) -> bool:
        """Whether the bucket exists; raises StorageUnavailable when nobody can say."""
        found = await self._call(
            "look for its bucket", lambda s3: s3.head_bucket(Bucket=self.bucket), missing=_MISSING
        )
        return found is not None

    async def answers(self) -> bool:
        """Whether storage is there and takes our keys."""
        try:
            await self.is_there()
        except StorageUnavailable:
            return False
        return True

    async def ensure_bucket(self) -> None:
        """Make the bucket where it is missing."""
        if await self.is_there():
            return

        def make(s3: Any) -> None:
            region = self._settings.region
            place = {} if region == "us-east-1" else {"LocationConstraint": region}
            options = {"CreateBucketConfiguration": place} if place else {}
            s3.create_bucket(Bucket=self.bucket, **options)

        try:
            await self._call("make its bucket", make)
        except StorageRefused as refused:
            # Another instance was faster.
            if refused.reason not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        log.info("made the bucket %s", self.bucket)

    async def set_cors(self, origins: Sequence[str]) -> None:
        """Let pages of these origins put parts and read their ETags."""
        rule = {
            "AllowedOrigins": list(origins),
            "AllowedMethods": ["GET", "PUT", "HEAD"],
            "AllowedHeaders": ["*"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 3600,
        }
        await self._call(
            "set which pages may write",
            lambda s3: s3.put_bucket_cors(
                Bucket=self.bucket, CORSConfiguration={"CORSRules": [rule]}
            ),
        )

    # -- uploads --------------------------------------------------------------------------------

    async def create_multipart(self, key: str, *, digests: bool = False) -> str:
        """Open an upload; its id. With `digests` every part has to come with its SHA-256."""
        checksum = {"ChecksumAlgorithm": "SHA256"} if digests else {}

        def create(s3: Any) -> str:
            answer = s3.create_multipart_upload(
                Bucket=self.bucket,
                Key=key,
                ContentType=INERT_TYPE,
                ContentDisposition="attachment",
                **checksum,
            )
            return str(answer["UploadId"])

        return await self._call("open an upload", create)

    async def upload_part(self, key: str, upload_id: str, number: int, data: bytes) -> StoredPart:
        """Put bytes that are here anyway, as a worker's are. The daemon has none."""

        def put(s3: Any) -> StoredPart:
            answer = s3.upload_part(
                Bucket=self.bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=data
            )
            return StoredPart(number, len(data), answer["ETag"].strip('"'), None)

        return await self._call("take a part", put)

    async def list_parts(self, key: str, upload_id: str) -> list[StoredPart] | None:
        """The parts stored so far, in order; None when there is no such upload (any more)."""

        def read(s3: Any) -> list[StoredPart]:
            parts: list[StoredPart] = []
            for page in s3.get_paginator("list_parts").paginate(
                Bucket=self.bucket, Key=key, UploadId=upload_id
            ):
                parts += [_part(item) for item in page.get("Parts", ())]
            return parts

        return await self._call("list the parts of an upload", read, missing=_MISSING)

    async def complete(self, key: str, upload_id: str, parts: Sequence[StoredPart]) -> str | None:
        """Make the object of its parts; its ETag. None when there is no such upload (any more).

        Raises StorageRefused when a part is not as said (reason ``InvalidPart``).
        """
        listed = [
            {
                "PartNumber": part.number,
                "ETag": f'"{part.etag}"',
                **({"ChecksumSHA256": _base64(part.sha256)} if part.sha256 else {}),
            }
            for part in parts
        ]

        def finish(s3: Any) -> str:
            answer = s3.complete_multipart_upload(
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
            )
            return str(answer["ETag"]).strip('"')

        return await self._call("complete an upload", finish, missing=_MISSING)

    async def settle(self) -> None:
        """Return once no power cut takes what storage has completed, where that is ours to see to."""
        if self._disk is not None:
            await self._disk.settle()

    def begin_to_settle(self) -> None:
        """Have the disk begin with what storage has taken so far; see `settle`."""
        if self._disk is not None:
            self._disk.begin()

    async def abort(self, key: str, upload_id: str) -> bool:
        """Give an upload up, with its parts; False when there is none (any more)."""
        done = await self._call(
            "abort an upload",
            lambda s3: s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id),
            missing=_GONE,
        )
        return done is not None

    async def list_multipart(self, page: str | None = None) -> tuple[list[OpenUpload], str | None]:
        """Uploads that are open, a page of them, and where the next page begins (None: the last)."""

        def read(s3: Any) -> tuple[list[OpenUpload], str | None]:
            key, _, upload_id = (page or "").partition("\n")
            marker = {"KeyMarker": key, "UploadIdMarker": upload_id} if page else {}
            answer = s3.list_multipart_uploads(Bucket=self.bucket, **marker)
            found = [
                OpenUpload(item["Key"], item["UploadId"], _ms(item["Initiated"]))
                for item in answer.get("Uploads", ())
            ]
            more = None
            if answer.get("IsTruncated"):
                more = f"{answer['NextKeyMarker']}\n{answer.get('NextUploadIdMarker', '')}"
            return found, more

        return await self._call("list open uploads", read)

    # -- objects --------------------------------------------------------------------------------

    async def head(self, key: str) -> StoredObject | None:
        """What storage holds under `key`; None for nothing."""

        def look(s3: Any) -> StoredObject:
            answer = s3.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
            return StoredObject(
                size=int(answer["ContentLength"]),
                etag=str(answer["ETag"]).strip('"'),
                checksum=answer.get("ChecksumSHA256"),
                modified_at=_ms(answer["LastModified"]),
            )

        return await self._call("look at a file", look, missing=_MISSING)

    async def delete(self, key: str) -> None:
        """Remove `key`; well done too when there is none."""
        await self._call(
            "delete a file",
            lambda s3: s3.delete_object(Bucket=self.bucket, Key=key),
            missing=_GONE,
        )

    async def list_keys(
        self, prefix: str = "", page: str | None = None
    ) -> tuple[list[StoredKey], str | None]:
        """Keys in order, a page of up to 1,000, and where the next begins (None: the last page)."""

        def read(s3: Any) -> tuple[list[StoredKey], str | None]:
            marker = {"StartAfter": page} if page else {}
            answer = s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **marker)
            found = [
                StoredKey(item["Key"], int(item["Size"]), _ms(item["LastModified"]))
                for item in answer.get("Contents", ())
            ]
            return found, found[-1].key if answer.get("IsTruncated") and found else None

        return await self._call("list its keys", read)

    # -- how ------------------------------------------------------------------------------------

    async def _call(
        self, what: str, fn: Callable[[Any], T], *, missing: frozenset[str] = _NOTHING
    ) -> T | Any:
        """`fn` with the S3 client, in a thread. None where it answers one of `missing`.

        A caller that is cancelled does not wait for the thread, which ends by its timeouts.
        """
        if self._limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise StorageUnavailable(
                f"Storage ({self.endpoint}) is slow: {MAX_WAITING} calls wait. Try again shortly."
            )
        return await trio.to_thread.run_sync(
            self._run, what, fn, missing, limiter=self._limiter, abandon_on_cancel=True
        )

    def _run(self, what: str, fn: Callable[[Any], T], missing: frozenset[str]) -> T | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return fn(self._client())
        except ClientError as error:
            details = error.response.get("Error", {})
            reason = str(details.get("Code", ""))
            if reason in missing:
                return None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            kind = StorageUnavailable if status >= 500 else StorageRefused
            text = (
                f"Storage ({self.endpoint}, bucket {self.bucket}) did not {what}:"
                f" {reason or status} {str(details.get('Message', ''))[:200]}".rstrip(" .")
                + (
                    ". Set this machine's clock and storage's by NTP: `timedatectl`."
                    if reason == "RequestTimeTooSkewed"
                    else ". `holdover storage doctor` looks closer."
                )
            )
            if kind is StorageRefused:
                raise StorageRefused(text, reason) from error
            raise StorageUnavailable(text) from error
        except (BotoCoreError, OSError) as error:
            raise self._unreachable(what, error) from error

    def _unreachable(self, what: str, error: BaseException) -> StorageUnavailable:
        return StorageUnavailable(
            f"Storage ({self.endpoint}) could not be asked to {what}:"
            f" {type(error).__name__}. See that it runs and can be reached (`holdover storage"
            " status`), then try again."
        )

    def _client(self) -> Any:
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        import boto3
        from botocore.config import Config

        # At debug level botocore tells every header it signs.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        logging.getLogger("boto3").setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        client = boto3.session.Session(
            aws_access_key_id=self._credentials.access_key,
            aws_secret_access_key=self._credentials.secret_key,
            region_name=self._settings.region,
        ).client(
            "s3",
            endpoint_url=self._settings.endpoint,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": self._settings.addressing},
                # Other stores than Amazon's know nothing of the newer defaults.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": 2},
                max_pool_connections=THREADS,
                # Neither the environment nor a file of the user's decides where bytes go.
                proxies={},
            ),
        )
        client.meta.events.register("after-call.s3", self._see_clock)
        return client

    def _see_clock(self, http_response: Any, **_others: Any) -> None:
        try:
            at = email.utils.parsedate_to_datetime(http_response.headers["Date"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return
        # Half a second: the header has whole seconds, cut off.
        self._its_time_s, self._seen_at_s = at.timestamp() + 0.5, since_boot_s()


def _part(item: dict[str, Any]) -> StoredPart:
    checksum = item.get("ChecksumSHA256")
    return StoredPart(
        number=int(item["PartNumber"]),
        size=int(item["Size"]),
        etag=str(item["ETag"]).strip('"'),
        sha256=base64.b64decode(checksum).hex() if checksum else None,
    )


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
