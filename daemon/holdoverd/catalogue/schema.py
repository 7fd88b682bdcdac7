"""The catalogue's tables, as SQLAlchemy Core metadata; the migrations must arrive at exactly this.

Core types only, so that SQLite and PostgreSQL both hold it. Times are integer milliseconds, JSON
is text that nobody in the database looks into (lines are kept byte for byte).

`messages` is an ordinary table with two unique indexes, on SQLite a rowid table. ``WITHOUT ROWID``
would save the second copy of (session, seq), but then a row lives inside an index b-tree: anything
over a quarter of a page goes to overflow pages, interior pages carry bodies too, and an agent's
lines are mostly larger than that. A body stands last in its row, so that reading everything else
of a 40 MiB line never touches its overflow pages.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

# The schema this release reads and writes: the revision of its last migration.
VERSION = 10

# Named constraints, or a later migration could not drop one by the same name on both databases.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# key -> value; what is true of the whole catalogue. See migrate.py for the keys.
meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

owners = Table(
    "owners",
    metadata,
    Column("name", Text, primary_key=True),
    Column("account", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner", Text, ForeignKey("owners.name"), nullable=False, index=True),
    Column("scopes", Text, nullable=False),  # sorted, separated by one space
    Column("digest", Text, nullable=False, unique=True),  # sha256 in hex; the token is not kept
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
)

# Codes that log one more browser in, once, within minutes; see http/login.py.
login_codes = Table(
    "login_codes",
    metadata,
    Column("digest", Text, primary_key=True),  # sha256 in hex; the code is not kept
    Column("owner", Text, ForeignKey("owners.name"), nullable=False),
    Column("scopes", Text, nullable=False),  # as in `tokens`
    Column("expires_at", BigInteger, nullable=False, index=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("epoch", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("agent_session", Text, nullable=False),
    Column("cwd", Text),
    Column("title", Text),
    Column("model", Text),
    Column("permission_mode", Text, nullable=False),
    Column("share", Text),
    Column("state", Text, nullable=False),  # the wire's states, and PURGED, which no reader sees
    Column("last_seq", BigInteger, nullable=False),
    Column("cost_usd", Double, nullable=False),
    Column("context", Text),
    Column("host", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("release", Text, nullable=False),
    Column("owner_epoch", BigInteger, nullable=False),
    Column("error", Text),
    Column("live", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("turn_cut", Text),  # "agent" or "reboot" while a turn waits to be gone on with
    # Up to where its messages are indexed; see searched.py.
    Column("searched_seq", BigInteger, nullable=False, server_default="0"),
    Index("ix_sessions_updated_at_id", "updated_at", "id"),
    Index("ix_sessions_host_generation", "host", "generation"),
)

# The state of a session whose messages are being removed slice by slice (sessions.purge_session).
PURGED = "purged"

threads = Table(
    "threads",
    metadata,
    Column("session", Text, ForeignKey("sessions.id"), primary_key=True),
    Column("thread", Text, primary_key=True),
    Column("parent_thread", Text),
    Column("title", Text),
    Column("n", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("position", Integer, nullable=False),  # 1, 2, 3 … in the order they were opened
    Index("ix_threads_session_position", "session", "position"),
)

messages = Table(
    "messages",
    metadata,
    Column("session", Text, ForeignKey("sessions.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("n", BigInteger, nullable=False),
    Column("thread", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("uuid", Text),
    Column("client_id", Text),
    Column("request_id", Text),
    Column("size", BigInteger, nullable=False),  # bytes of `body` in UTF-8
    Column("preview", Text),  # the beginning of a body too large to go out whole, else null
    Column("body", Text, nullable=False),
    UniqueConstraint("session", "thread", "n"),
)

permissions = Table(
    "permissions",
    metadata,
    Column("session", Text, ForeignKey("sessions.id"), primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("agent_request_id", Text, nullable=False),
    Column("launch", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("thread", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("answered_by", Text),
    Index("ix_permissions_session_state", "session", "state"),
)

prompts = Table(
    "prompts",
    metadata,
    Column("session", Text, ForeignKey("sessions.id"), primary_key=True),
    Column("id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("launch", Text),
    Index("ix_prompts_session_state", "session", "state"),
)

launches = Table(
    "launches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("session", Text, ForeignKey("sessions.id"), nullable=False),
    Column("nonce", Text, nullable=False),
    Column("owner_epoch", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("replay_from", BigInteger, nullable=False),
    Column("last_n", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("agent_pid", Integer),
    Column("keeper_pid", Integer),
    Column("outcome", Text),
    Index("ix_launches_session_state", "session", "state"),
)

# Commands numbered for a keeper and not yet acknowledged by it.
outbox = Table(
    "outbox",
    metadata,
    Column("session", Text, nullable=False),
    Column("launch", Text, ForeignKey("launches.id"), primary_key=True),
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("line", Text),
    Column("seq", BigInteger),
    # `line` null means: the body of this message, which must exist then.
    ForeignKeyConstraint(["session", "seq"], ["messages.session", "messages.seq"]),
    Index("ix_outbox_session_seq", "session", "seq"),
)

instances = Table(
    "instances",
    metadata,
    Column("host", Text, primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("release", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("since_at", BigInteger, nullable=False),
    Column("pid", Integer, nullable=False),
)

# Requests with an Idempotency-Key and their answers; see answered.py.
answered = Table(
    "answered",
    metadata,
    Column("key", Text, primary_key=True),  # sha256 in hex, as `request`
    Column("request", Text, nullable=False),
    Column("token", Text, nullable=False, index=True),  # its id; "" at the admin door
    Column("host", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False, index=True),
    Column("status", Integer),  # null while the request is being answered
    Column("body", Text),
)

# Text in the order of its bytes, which is SQLite's own order: where a range of it means something.
BYTEWISE = Text().with_variant(Text(collation="C"), "postgresql")

# How much each owner has in storage, kept in step with `files` by the same transactions: summing
# up a million rows for every upload would be too slow. Also what the owner may have.
usage = Table(
    "usage",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),  # of files that are uploading or ready
    Column("files", BigInteger, nullable=False),
    Column("quota_bytes", BigInteger),  # null: [storage] quota_bytes
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("name", BYTEWISE, nullable=False),
    Column("path", BYTEWISE, nullable=False),  # "a/b"; "" is the root
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text),
    Column("verified", Text),
    Column("content_type", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("key", BYTEWISE, nullable=False, unique=True),  # storage's; never used again
    Column("created_at", BigInteger, nullable=False),
    Column("erased_at", BigInteger),  # when the bytes of a deleted file were gone from storage
)
# Lists show no deleted files, so their indexes need not hold them. On SQLite alone: naming PostgreSQL
# here would load its dialect, a tenth of a second for every start.
NOT_DELETED = text("state <> 'deleted'")
for _name, _columns in {
    "ix_files_owner_created_at_id": ("owner", "created_at", "id"),
    "ix_files_created_at_id": ("created_at", "id"),
    "ix_files_owner_path_name_id": ("owner", "path", "name", "id"),
    "ix_files_path_name_id": ("path", "name", "id"),
}.items():
    Index(
        _name,
        *(files.c[column] for column in _columns),
        sqlite_where=NOT_DELETED,
    )
Index(
    "ix_files_to_erase",
    files.c.id,
    sqlite_where=text("state = 'deleted' AND erased_at IS NULL"),
)

# What files are found by: the words of their names. A table of words rather than a database's own
# text search, because it is the same in both and answers in one short walk of an index.
file_words = Table(
    "file_words",
    metadata,
    Column("word", BYTEWISE, primary_key=True),
    Column("file", Text, ForeignKey("files.id"), primary_key=True),
    Column("owner", Text, nullable=False),
    Index("ix_file_words_owner_word_file", "owner", "word", "file"),
    Index("ix_file_words_file", "file"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("file", Text, ForeignKey("files.id"), nullable=False, index=True),
    Column("owner", Text, nullable=False),
    Column("upload_link", Text),  # the upload link it came by
    Column("storage_upload", Text),  # storage's own id; null until storage has opened it
    Column("part_size", BigInteger, nullable=False),
    Column("digests", Boolean, nullable=False),  # parts are taken with their SHA-256 alone
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("ix_uploads_state_expires_at", "state", "expires_at"),
)

# The digests that part URLs were signed with; needed to complete, gone afterwards.
upload_digests = Table(
    "upload_digests",
    metadata,
    Column("upload", Text, ForeignKey("uploads.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("sha256", Text, nullable=False),
)

links = Table(
    "links",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),  # sha256 in hex; the token is not kept
    Column("file", Text, ForeignKey("files.id"), nullable=False, index=True),
    Column("owner", Text, nullable=False),
    Column("password", Text),  # see files/passwords.py
    Column("max_downloads", BigInteger),
    Column("downloads", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Index("ix_links_owner_created_at_id", "owner", "created_at", "id"),
)

upload_links = Table(
    "upload_links",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("max_bytes", BigInteger, nullable=False),
    Column("used_bytes", BigInteger, nullable=False),  # of its uploads, but for those given up
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Index("ix_upload_links_owner_created_at_id", "owner", "created_at", "id"),
)

# What was done, by whom, to what; only ever added to.
audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),  # whose thing it was done to
    Column("actor", Text, nullable=False),  # a token's id, "admin", or the id of a link
    Column("action", Text, nullable=False),  # "link.made" …
    Column("subject", Text, nullable=False),  # the id of the thing
    Column("details", Text, nullable=False),  # JSON
    Index("ix_audit_at_id", "at", "id"),
    Index("ix_audit_owner_at_id", "owner", "at", "id"),
    Index("ix_audit_subject_at_id", "subject", "at", "id"),
)

# --- jobs; what may become of a row is in jobs/rules.py ---

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("processor", Text, nullable=False),
    Column("files", Text, nullable=False),
    Column("params", Text, nullable=False),
    Column("session", Text),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("spared", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("ready_at", BigInteger, nullable=False),
    Column("run_after", BigInteger, nullable=False),
    Column("worker", Text),
    Column("host", Text),
    Column("beat", BigInteger, nullable=False),
    Column("progress_bytes", BigInteger),
    Column("progress_total", BigInteger),
    Column("result", Text),
    Column("error", Text),
    Column("told", Integer, nullable=False),  # 1: its session has its notice, or wants none
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Index("ix_jobs_created_at_id", "created_at", "id"),
    Index("ix_jobs_owner_created_at_id", "owner", "created_at", "id"),
    # State first: what is looked for are the few rows that have not ended, beside any number of
    # others. (Partial indexes would be smaller; see `NOT_DELETED`.)
    Index("ix_jobs_state_processor_run_after_id", "state", "processor", "run_after", "id"),
    Index("ix_jobs_told_finished_at", "told", "finished_at"),
)

# What an attempt's processor said on stderr: its beginning and its end, not all that lay between.
job_logs = Table(
    "job_logs",
    metadata,
    Column("job", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),  # bytes that were said in all
    Column("at", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
)

# --- web push; see push/ ---

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False, index=True),
    Column("token", Text, nullable=False),  # the id of the token that made it, and ends it
    Column("endpoint", Text, nullable=False, unique=True),
    Column("p256dh", Text, nullable=False),
    Column("auth", Text, nullable=False),
    Column("key", Text, nullable=False),  # our public key that it was made for
    Column("created_at", BigInteger, nullable=False),
    # told of sessions too that others share with everyone to write, as far as its token may answer
    Column("shared", Boolean, nullable=False, server_default=false()),
)
