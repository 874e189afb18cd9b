"""What do the cache headers say?"""

import pytest

from gateway.errors import InvalidRequest
from gateway.inference import CacheWish
from gateway.protocols.cache_control import read_cache_wish


def test_without_headers_there_is_no_wish() -> None:
    assert read_cache_wish({"accept": "*/*"}) is None


@pytest.mark.parametrize(
    ("headers", "may_read", "may_keep", "ttl_s"),
    [
        ({"cache-control": "no-cache"}, False, True, None),
        ({"cache-control": "max-age=0, No-Cache"}, False, True, None),
        ({"cache-control": "no-store"}, False, False, None),
        ({"cache-control": "max-age=5"}, True, True, None),
        ({"x-tollgate-cache-ttl": " 60 "}, True, True, 60),
        ({"x-tollgate-cache-ttl": "0"}, True, False, 0),
        ({"cache-control": "no-cache", "x-tollgate-cache-ttl": "9"}, False, True, 9),
    ],
)
def test_headers_say_what_may_be_done(
    headers: dict[str, str], *, may_read: bool, may_keep: bool, ttl_s: int | None
) -> None:
    assert read_cache_wish(headers) == CacheWish(may_read=may_read, may_keep=may_keep, ttl_s=ttl_s)


@pytest.mark.parametrize("ttl", ["", "-1", "1.5", "one", "\N{SUPERSCRIPT TWO}", "1" * 10])
def test_a_time_to_live_is_whole_seconds(ttl: str) -> None:
    with pytest.raises(InvalidRequest, match="whole number of seconds"):
        read_cache_wish({"x-tollgate-cache-ttl": ttl})
