#!/bin/sh
# requirements/{gateway,forecast,dev}.in → .txt: every package pinned, for Python 3.11 to 3.13 at once.
# Uses uv in an environment of its own, with the index that pip is configured with.
# The engine's files are resolved from vLLM's own metadata when its version changes; their headers say how.
set -eu

lock=.tollgate/lock-venv
[ -x "$lock/bin/uv" ] || { python3 -m venv "$lock" && "$lock/bin/pip" install --quiet uv; }

# uv does not read pip's configuration.
index=$("$lock/bin/pip" config get global.index-url 2>/dev/null || true)
extra=$("$lock/bin/pip" config get global.extra-index-url 2>/dev/null || true)
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
[ -z "$extra" ] || export UV_INDEX="$extra"

for name in gateway forecast dev; do
    "$lock/bin/uv" pip compile --quiet --universal --python-version 3.11 --index-strategy unsafe-best-match \
        --no-header --no-annotate --system-certs --upgrade \
        "requirements/$name.in" --output-file "requirements/$name.txt"
    echo "requirements/$name.txt: $(grep -c == "requirements/$name.txt") packages"
done
