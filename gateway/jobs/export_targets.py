"""Where do scheduled exports go: a folder, or a bucket that speaks S3?

Either way a file is there whole or not at all. In a folder it is renamed into place; for a bucket it is
written to a temporary file first and then put there, in one request or in parts that count when they are all
in. Doing it again writes the same names again. Credentials are boto3's business (environment, profile,
instance); none of them is kept here.
"""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import ConfigurationError, InvalidRequest
from gateway.jobs.export_work import beside, write_file
from gateway.ledger.exports import Export, Footing

S3 = "s3://"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Where a file goes."""

    target: str
    """A folder, or s3://bucket/prefix."""
    name: str
    """Of the file."""
    endpoint_url: str | None = None


def check_target(target: str, endpoint_url: str | None) -> None:
    """Refuse a target that cannot be meant.

    Raises:
        InvalidRequest: says how one is written.
    """
    if target.startswith(S3):
        bucket = target.removeprefix(S3).partition("/")[0]
        if not bucket:
            raise InvalidRequest("A bucket is written s3://bucket or s3://bucket/prefix.", param="to")
        if endpoint_url is not None and not endpoint_url.startswith(("http://", "https://")):
            raise InvalidRequest(
                "An endpoint is an address such as https://minio.example:9000.", param="endpoint_url"
            )
        return
    if "://" in target or not target.strip():
        raise InvalidRequest(
            f"Exports go to a folder or to s3://bucket/prefix, not to {target[:80]!r}.", param="to"
        )
    if endpoint_url is not None:
        raise InvalidRequest("An endpoint goes with s3://…, not with a folder.", param="endpoint_url")


async def deliver(session: AsyncSession, wanted: Export, to: Delivery, *, now_ms: int) -> Footing:
    """Make an export and bring it there.

    Raises:
        InvalidRequest, NotFound, DoesNotFoot: as `write_file`.
        ConfigurationError: it cannot be written there; says why.
    """
    if not to.target.startswith(S3):
        return await write_file(session, wanted, _made(to.target) / to.name, now_ms=now_ms)
    with tempfile.TemporaryDirectory(prefix="tollgate-export-") as scratch:
        path = Path(scratch, to.name)
        footing = await write_file(session, wanted, path, now_ms=now_ms)
        bucket, _, prefix = to.target.removeprefix(S3).partition("/")
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        # What it is of stands there before it does.
        for file in (beside(path), path):
            _put(file, bucket=bucket, key=f"{start}{file.name}", endpoint_url=to.endpoint_url)
        return msgspec.structs.replace(footing, place=f"{S3}{bucket}/{start}{path.name}")


def _made(target: str) -> Path:
    folder = Path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _put(file: Path, *, bucket: str, key: str, endpoint_url: str | None) -> None:
    # Loaded here: boto3 takes half a second, and only a bucket needs it.
    boto3: Any = import_module("boto3")
    errors: Any = import_module("botocore.exceptions")
    transfer: Any = import_module("boto3.exceptions")
    try:
        client = boto3.client("s3", endpoint_url=endpoint_url)
        client.upload_file(str(file), bucket, key)
    except (errors.BotoCoreError, errors.ClientError, transfer.S3UploadFailedError) as error:
        raise ConfigurationError(f"{S3}{bucket}/{key} cannot be written: {error}") from None
