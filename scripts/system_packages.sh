#!/bin/sh
# Debian packages that the tests need, with the argument `proof` also what `make proof` does: installed when we are root and apt is there, otherwise named.
# PostgreSQL and Redis are started by the tests themselves, on free ports; the packages' own services are not used.
set -eu

missing=""
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing="$missing chromium"
[ -n "$(ls /usr/lib/*/libnuma.so.1 /usr/lib64/libnuma.so.1 2>/dev/null)" ] || missing="$missing libnuma1"

# The lab's load and upstream are C programs.
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
# Debian keeps daemons out of the PATH of ordinary users.
[ "${1:-}" != proof ] || [ -x /usr/sbin/nginx ] || command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"

[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing Debian packages for the tests:$missing"
    log=.tollgate/logs/apt.log
    mkdir -p .tollgate/logs
    # A container has no init to start services with; the tests do not want them either.
    # shellcheck disable=SC2086
    if apt-get update >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; then
        exit 0
    fi
    tail -n 5 "$log"
    echo "that failed; full log: $log"
fi
echo "the tests need these Debian packages:$missing"
echo "next step: sudo apt-get install$missing"
exit 1
