"""Where do the console's scripts, styles and pictures come from?

Ours lie in `static/`, unminified. Charts (Chart.js), partial updates (htmx) and the editor (Ace) come from
the installed packages django-unfold and django-ace, which carry them for Django; nothing of Django is
imported. Everything is served from here: a company's closed network reaches no content delivery network. What
a browser asks for is compressed once and kept.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response

from gateway.errors import NotFound

_OURS = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_ACE = "static/django_ace/ace"
_PACKAGED = {
    "chart.js": ("unfold", "static/unfold/js/chart/chart.js"),
    "htmx.js": ("unfold", "static/unfold/js/htmx/htmx.js"),
    "ace.js": ("django_ace", f"{_ACE}/ace.js"),
    "ace-yaml.js": ("django_ace", f"{_ACE}/mode-yaml.js"),
    "ace-language-tools.js": ("django_ace", f"{_ACE}/ext-language_tools.js"),
    "ace-searchbox.js": ("django_ace", f"{_ACE}/ext-searchbox.js"),
    "ace-light.js": ("django_ace", f"{_ACE}/theme-github_light_default.js"),
    "ace-dark.js": ("django_ace", f"{_ACE}/theme-github_dark.js"),
    "ace.css": ("django_ace", f"{_ACE}/css/ace.css"),
    "ace-light.css": ("django_ace", f"{_ACE}/css/theme/github_light_default.css"),
    "ace-dark.css": ("django_ace", f"{_ACE}/css/theme/github_dark.css"),
}
_ACE_PICTURES = ("main-", "github_dark-", "github_light_default-")
"""What Ace's style sheets ask for, relative to themselves."""
_FOREVER = "public, max-age=31536000, immutable"


async def static_file(name: str, request: Request) -> Response:
    """One of the console's files.

    Raises:
        NotFound: there is no such file.
    """
    plain, packed = _contents(name)
    headers = {"cache-control": _FOREVER, "vary": "accept-encoding"}
    if packed and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, headers=headers | {"content-encoding": "gzip"}, media_type=_type(name))
    return Response(plain, headers=headers, media_type=_type(name))


def assets_version() -> str:
    """In the addresses of static files, so that they may be kept long and still change with us."""
    digest = hashlib.sha256()
    for path in sorted(_OURS.iterdir()):
        digest.update(path.read_bytes())
    for package in ("django-unfold", "django-ace"):
        digest.update(version(package).encode())
    return digest.hexdigest()[:12]


@functools.lru_cache(maxsize=128)
def _contents(name: str) -> tuple[bytes, bytes]:
    """A file, plain and compressed; the second is empty where compressing gains nothing.

    Raises:
        NotFound: there is no such file.
    """
    path = _path(name)
    if path is None or not path.is_file():
        raise NotFound("There is no such file.")
    plain = path.read_bytes()
    if name.startswith("ace-") and path.suffix == ".css":
        # Its themes lie a folder below their pictures; here all files are in one.
        plain = plain.replace(b'url("../', b'url("./')
    packed = b"" if path.suffix == ".png" else gzip.compress(plain, mtime=0)
    return plain, packed


def _path(name: str) -> Path | None:
    if "/" in name or "\\" in name or Path(name).suffix not in _TYPES:
        return None
    if name in _PACKAGED:
        package, inside = _PACKAGED[name]
        return _package_folder(package) / inside
    if name.startswith(_ACE_PICTURES):
        return _package_folder("django_ace") / _ACE / "css" / name
    return _OURS / name


def _package_folder(package: str) -> Path:
    """Where a package is installed, without importing it: that would ask for Django's settings.

    Raises:
        NotFound: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(
            "A part of the console is not installed.",
            operator_detail=f"the package {package} is missing: install what gateway.txt asks for",
        )
    return Path(spec.submodule_search_locations[0])


def _type(name: str) -> str:
    return _TYPES[Path(name).suffix]
