"""Where do scheduled exports go: a folder, or a bucket that speaks S3?

Either way a file is there whole or not at all. In a folder it is renamed into place; for a bucket it is
written to a temporary file first and then put there, in one request or in parts that count when they are all
in. Doing it again writes the same names again, but for a final file: once it is there, with what says so
beside it, it is left alone. Credentials are boto3's business (environment, profile,
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
from gateway.jobs.export_work import BESIDE, beside, footing_said, sha256_of, write_file
from gateway.ledger.exports import Export, Footing

S3 = "s3://"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Where a file goes."""

    target: str
    """A folder, or s3://bucket/prefix."""
    name: str
    """Of the file."""
    endpoint_url: str | None = None
    is_final: bool = False
    """It is of a closed period: one that is there already is not written again."""


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
    """Make an export and bring it there; a final file that is there already is told as it is.

    Raises:
        InvalidRequest, NotFound, DoesNotFoot: as `write_file`.
        ConfigurationError: it cannot be written there, or something else is there; says why.
    """
    if not to.target.startswith(S3):
        path = _made(to.target) / to.name
        kept = _kept_in_folder(path) if to.is_final else None
        return kept or await write_file(session, wanted, path, now_ms=now_ms)
    bucket = _Bucket(to)
    kept = bucket.kept() if to.is_final else None
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="tollgate-export-") as scratch:
        path = Path(scratch, to.name)
        footing = await write_file(session, wanted, path, now_ms=now_ms)
        # What it is of stands there before it does.
        for file in (beside(path), path):
            bucket.put(file)
        return msgspec.structs.replace(footing, place=bucket.place)


def _kept_in_folder(path: Path) -> Footing | None:
    """The final file that is there; None: there is none, or one that says that it may change."""
    try:
        kept = footing_said(beside(path).read_bytes())
        if kept is None or kept.period_state != "closed" or not path.exists():
            return None
        if sha256_of(path) != kept.sha256:
            raise _not_as_said(str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    return msgspec.structs.replace(kept, place=str(path))


def _not_as_said(place: str) -> ConfigurationError:
    return ConfigurationError(
        f"{place} is there and is not what {BESIDE} beside it says. A final file is never written over: move"
        " both away, and it is written again."
    )


def _made(target: str) -> Path:
    folder = Path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


class _Bucket:
    """Where a file goes in storage that speaks S3."""

    def __init__(self, to: Delivery) -> None:
        # Loaded here: boto3 takes half a second, and only a bucket needs it.
        boto3: Any = import_module("boto3")
        errors: Any = import_module("botocore.exceptions")
        transfer: Any = import_module("boto3.exceptions")
        self._failures = (errors.BotoCoreError, errors.ClientError, transfer.S3UploadFailedError)
        self._refused = errors.ClientError
        self._bucket, _, prefix = to.target.removeprefix(S3).partition("/")
        self._start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._name = to.name
        self.place = f"{S3}{self._bucket}/{self._start}{to.name}"
        try:
            self._client = boto3.client("s3", endpoint_url=to.endpoint_url)
        except self._failures as error:
            raise ConfigurationError(f"{self.place} cannot be written: {error}") from None

    def kept(self) -> Footing | None:
        """The final file that is there; None: there is none, or one that says that it may change.

        Raises:
            ConfigurationError: nobody can tell, or it has another size than is said beside it.
        """
        key = f"{self._start}{self._name}"
        try:
            said = self._client.get_object(Bucket=self._bucket, Key=f"{key}{BESIDE}")["Body"].read()
            size = self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except self._refused as error:
            if str(error.response.get("Error", {}).get("Code")) in {"404", "NoSuchKey", "NotFound"}:
                return None
            raise ConfigurationError(f"{self.place} cannot be read: {error}") from None
        except self._failures as error:
            raise ConfigurationError(f"{self.place} cannot be read: {error}") from None
        kept = footing_said(said)
        if kept is None or kept.period_state != "closed":
            return None
        if size != kept.bytes:
            raise _not_as_said(self.place)
        return msgspec.structs.replace(kept, place=self.place)

    def put(self, file: Path) -> None:
        """Bring a file there.

        Raises:
            ConfigurationError: it cannot be written.
        """
        key = f"{self._start}{file.name}"
        try:
            self._client.upload_file(str(file), self._bucket, key)
        except self._failures as error:
            raise ConfigurationError(f"{S3}{self._bucket}/{key} cannot be written: {error}") from None
