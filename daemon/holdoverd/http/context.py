"""What handlers need: the catalogue, the sessions, and the settings that the doors go by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sqlalchemy import Connection

from holdoverd.callers import Caller
from holdoverd.catalogue import retained, tokens
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import Forbidden, Unprocessable
from holdoverd.files.carrier import Carrier
from holdoverd.files.services import FileServices
from holdoverd.handover.packed import Detached
from holdoverd.http.live import LiveStreams
from holdoverd.http.login import LoginFailures
from holdoverd.http.shapes import Json
from holdoverd.http.wire import Head, Names
from holdoverd.ids import now_ms
from holdoverd.metrics.counts import Counts
from holdoverd.metrics.gather import Metrics
from holdoverd.sessions.viewer import ViewerCursor
from holdoverd.settings import RetentionSettings
from holdoverd.web.assets import Client

DEFAULT_OWNER = "default"


class Page(Protocol):
    """A page of messages as JSON text, ready to send. `etag` is quoted, as HTTP wants it."""

    @property
    def json_text(self) -> str: ...
    @property
    def sealed(self) -> bool: ...
    @property
    def etag(self) -> str: ...


class Viewer(Protocol):
    """One WebSocket's view of a session: frames to send, in order."""

    async def next_frame(self) -> str:
        """The next text frame; raises `holdoverd.sessions.viewer.ViewerClosed` after the last."""

    def subscribe(self, thread: str, after_n: int | None) -> None:
        """Frames of `thread` come from now on. Not async: ``ok`` has to leave before them."""

    def detach(self) -> ViewerCursor | None:
        """Give no further frame (`ViewerDetached`), and say what was given. Not async.

        None: it is being closed, and so will the connection be.
        """

    def close(self) -> None:
        """The connection is gone; no frame is wanted any more. Idempotent."""


class SessionService(Protocol):
    """What sessions offer to the doors. Each raises RequestErrors; texts are JSON, ready to send.

    What has a Connection is run in a thread of the catalogue's, and leaves all else alone.

    Shapes were checked before; existence, ownership and share are the service's to decide.
    """

    async def create(self, caller: Caller, spec: Json) -> str: ...
    def list_sessions(
        self,
        cx: Connection,
        caller: Caller,
        *,
        state: str | None,
        q: str | None,
        agent: str | None,
        limit: int,
        cursor: str | None,
    ) -> str: ...
    def get(self, cx: Connection, caller: Caller, session: str) -> str: ...
    async def patch(self, caller: Caller, session: str, changes: Json) -> str: ...
    async def end(self, caller: Caller, session: str, *, purge: bool) -> None: ...
    async def prompt(self, caller: Caller, session: str, prompt: Json) -> tuple[int, Json]: ...
    async def cancel_prompt(self, caller: Caller, session: str, prompt_id: str) -> None: ...
    async def answer(self, caller: Caller, session: str, answer: Json) -> Json: ...
    async def interrupt(self, caller: Caller, session: str, *, cancel_queued: bool) -> Json: ...
    async def resume(self, caller: Caller, session: str) -> Json: ...
    async def page(
        self, caller: Caller, session: str, thread: str, page: int, epoch: str | None
    ) -> Page: ...
    async def log(self, caller: Caller, session: str, after: int, limit: int) -> str: ...
    async def body(self, caller: Caller, session: str, seq: int) -> str: ...
    async def open_viewer(
        self,
        caller: Caller,
        session: str,
        *,
        after: int | None,
        epoch: str | None,
        threads: Literal["all", "main"],
    ) -> Viewer: ...
    async def attach_viewer(self, caller: Caller, session: str, cursor: ViewerCursor) -> Viewer:
        """Go on for a viewer that was detached. Raises as `open_viewer` does."""


class RetentionService(Protocol):
    """What removes what is old; see `holdoverd.retention`."""

    settings: RetentionSettings

    async def due(self) -> retained.Counts: ...
    async def remove(self) -> retained.Counts: ...


class JobService(Protocol):
    """What jobs offer to the doors. Each raises RequestErrors; answers are as contract.md has them."""

    def prepare(
        self, caller: Caller, spec: Json, job_id: str | None = None
    ) -> Callable[[Connection], object]:
        """What stores the job, for a write that does more; then `wake`."""

    def wake(self) -> None: ...
    async def submit(self, caller: Caller, spec: Json) -> Json: ...
    async def list_jobs(
        self,
        caller: Caller,
        *,
        state: str | None,
        processor: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json: ...
    async def get(self, caller: Caller, job_id: str) -> Json: ...
    async def log(self, caller: Caller, job_id: str, attempt: int | None) -> Json: ...
    async def cancel(self, caller: Caller, job_id: str) -> None: ...
    async def retry(self, caller: Caller, job_id: str) -> Json: ...


class SkillService(Protocol):
    """What skills offer to the doors. Each raises RequestErrors; answers are as contract.md has them."""

    async def list_skills(self, caller: Caller, place: Json) -> Json: ...
    async def diff(self, caller: Caller, name: str, to: str | None, place: Json) -> Json: ...
    async def change(self, caller: Caller, op: str, request: Json) -> Json: ...
    async def marketplaces(self, caller: Caller) -> Json: ...
    async def add_marketplace(self, caller: Caller, source: str) -> Json: ...
    async def remove_marketplace(self, caller: Caller, name: str) -> None: ...
    async def browse(
        self, caller: Caller, name: str, q: str | None, *, refresh: bool, limit: int, start: int
    ) -> Json: ...


class PushService(Protocol):
    """What web push offers to the doors. Each raises RequestErrors."""

    async def public_key(self) -> str: ...
    async def subscribe(
        self, caller: Caller, endpoint: str, p256dh: str, auth: str, *, shared: bool = False
    ) -> str: ...
    async def unsubscribe(self, caller: Caller, subscription: str) -> None: ...


class Router(Protocol):
    """The other instances of this host, and what they are told."""

    def instances(self) -> list[Json]:
        """Every living instance, this one too, as contract.md lists them (Operations)."""

    async def ask_drain(self, generation: int | None, *, migrate: bool) -> bool:
        """Have an instance (None: this one) hand over what it owns; False where there is none."""

    def token_gone(self, token_id: str) -> None:
        """Close what `token_id` has open elsewhere."""

    async def pass_on(self, detached: Detached, generation: int) -> bool:
        """Give a connection to the owner of its session; False: it is still the caller's."""


@dataclass
class Context:
    """Made once by `main`, passed to every handler.

    `host` and `generation` name this instance. `public_url` is without a trailing slash; "" makes
    links from the Host asked for, or from `own_url`, the public listener's, where the admin door was
    asked, whose Host says nothing.
    `unhealthy`: why this instance cannot serve, for ``/healthz``; None while it can.
    """

    catalogue: Catalogue
    sessions: SessionService
    generation: int
    release: str
    default_account: str
    host: str = ""
    public_url: str = ""
    own_url: str = ""
    hosts: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()
    unhealthy: str | None = None
    router: Router | None = None
    files: FileServices | None = None
    carrier: Carrier | None = None
    jobs: JobService | None = None
    skills: SkillService | None = None
    retention: RetentionService | None = None
    push: PushService | None = None
    streams: LiveStreams = field(default_factory=LiveStreams)
    login_failures: LoginFailures = field(default_factory=LoginFailures)
    counts: Counts = field(default_factory=Counts)
    metrics: Metrics | None = None
    client: Client = field(default_factory=Client)
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        self.public_url = self.public_url.rstrip("/")
        self.names = Names.of(self.public_url, self.hosts)

    def base_url(self, head: Head) -> str:
        """What a link made for whoever sent this request begins with."""
        if self.public_url:
            return self.public_url
        if head.door == "admin" and self.own_url:
            return self.own_url
        return f"http://{head.authority or 'localhost'}"

    def admin(self) -> Caller:
        """Whoever comes by the admin door."""
        return Caller(DEFAULT_OWNER, self.default_account, frozenset({"admin"}), None, admin=True)

    def token_gone(self, token_id: str) -> None:
        """Close 4001 what the token has open, here and in every other instance."""
        self.streams.token_gone(token_id)
        if self.router is not None:
            self.router.token_gone(token_id)

    async def authenticate(self, token: str) -> Caller | None:
        """Whose token this is; None when it is not, or no longer, valid."""
        return await self.catalogue.read(lambda cx: self.authenticate_in(cx, token))

    def authenticate_in(self, cx: Connection, token: str) -> Caller | None:
        """As `authenticate`, in a thread of the catalogue's."""
        return tokens.authenticate(cx, token, now_ms())

    async def acting_for(self, caller: Caller, owner: str | None) -> Caller:
        """`caller`, making something for `owner`. contract.md, Doors: admin names anyone.

        An admin who names nobody makes it for the default owner, by whatever token it came.
        """
        if not caller.admin:
            return _for_itself(caller, owner)
        return await self.catalogue.read(lambda cx: self.acting_for_in(cx, caller, owner))

    def acting_for_in(self, cx: Connection, caller: Caller, owner: str | None) -> Caller:
        """As `acting_for`, in a thread of the catalogue's."""
        if not caller.admin:
            return _for_itself(caller, owner)
        wanted = owner or DEFAULT_OWNER
        account = tokens.owner_account(cx, wanted)
        if account is None:
            if wanted != DEFAULT_OWNER:
                raise Unprocessable(
                    f"There is no owner {wanted!r}; `holdover token new --owner {wanted}` makes it."
                )
            account = self.default_account
        return Caller(wanted, account, caller.scopes, caller.token_id, admin=True)


def _for_itself(caller: Caller, owner: str | None) -> Caller:
    """A caller that is no admin: it names itself or nobody. Raises Forbidden."""
    if owner not in (None, caller.owner):
        raise Forbidden(
            f"The token belongs to {caller.owner!r} and cannot act for {owner!r}; that"
            " needs the scope `admin`."
        )
    return caller
