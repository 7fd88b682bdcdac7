"""Files, uploads, links and audit rows as the wire shows them (contract.md, Files)."""

import json

from holdoverd.catalogue.audit import AuditRow
from holdoverd.catalogue.files import FileRow, UploadRow, UsageRow
from holdoverd.catalogue.links import LinkRow, UploadLinkRow

Json = dict[str, object]


def file_view(row: FileRow) -> Json:
    return {
        "id": row.id,
        "owner": row.owner,
        "name": row.name,
        "path": row.path,
        "size": row.size,
        "sha256": row.sha256,
        "verified": row.verified,
        "content_type": row.content_type,
        "state": row.state,
        "created_at": row.created_at,
    }


def upload_view(upload: UploadRow, count: int) -> Json:
    """`count`: how many parts the file is cut into."""
    return {
        "id": upload.id,
        "state": upload.state,
        "part_size": upload.part_size,
        "count": count,
        "digests": upload.digests,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
    }


def link_view(row: LinkRow) -> Json:
    return {
        "id": row.id,
        "file": row.file,
        "owner": row.owner,
        "password": row.password is not None,
        "max_downloads": row.max_downloads,
        "downloads": row.downloads,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }


def upload_link_view(row: UploadLinkRow) -> Json:
    return {
        "id": row.id,
        "owner": row.owner,
        "path": row.path,
        "max_bytes": row.max_bytes,
        "used_bytes": row.used_bytes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }


def audit_view(row: AuditRow) -> Json:
    return {
        "id": row.id,
        "at": row.at,
        "owner": row.owner,
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "details": json.loads(row.details),
    }


def usage_view(row: UsageRow) -> Json:
    return {
        "owner": row.owner,
        "bytes": row.bytes,
        "files": row.files,
        "quota_bytes": row.quota_bytes,
    }
