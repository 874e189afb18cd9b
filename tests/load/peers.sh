#!/bin/sh
# Installs the gateways that `python -m tests.load.peer_table` compares Tollgate with, from PyPI and npm, each into an
# environment of its own under $LAB_PEERS (default: .tollgate/peers).
#
#   tests/load/peers.sh                              all of them; 1.3 GB, most of it LiteLLM's
#   tests/load/peers.sh vllm-router sglang-router    some of them
#   LAB_PEERS=/tmp/peers tests/load/peers.sh         elsewhere; name the same folder when measuring
#
# The versions are those that were measured first (2026-11-22); PEER_VERSION=… takes another one of a single peer.
set -eu

peers=${LAB_PEERS:-$(cd "$(dirname "$0")/../.." && pwd)/.tollgate/peers}
python=${PYTHON:-python3}
mkdir -p "$peers"

# environment NAME REQUIREMENT…
environment() {
    name=$1
    shift
    echo "$name: installing $* into $peers/$name"
    rm -rf "${peers:?}/$name"
    "$python" -m venv "$peers/$name"
    "$peers/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
}

install_peer() {
    case $1 in
        vllm-router) environment vllm-router "vllm-router==${PEER_VERSION:-0.1.17}" ;;
        sglang-router) environment sglang-router "sglang-router==${PEER_VERSION:-0.3.2}" ;;
        tensorzero) environment tensorzero "tensorzero==${PEER_VERSION:-2026.6.0}" openai ;;
        # 1.109.1 asks for a certifi that the index may not have; then pip falls back by itself.
        litellm) environment litellm "litellm[proxy]${PEER_VERSION:+==$PEER_VERSION}" ;;
        portkey)
            command -v npm >/dev/null || { echo "portkey: npm is missing: apt-get install nodejs npm" >&2; return 1; }
            echo "portkey: installing into $peers/portkey"
            rm -rf "${peers:?}/portkey"
            mkdir -p "$peers/portkey"
            # With the newest hono and @hono/node-server every stream fails ("TypeError: immutable"): its own lock file's.
            printf '{"dependencies":{"@portkey-ai/gateway":"%s"},"overrides":{"hono":"4.9.7","@hono/node-server":"1.13.5"}}\n' \
                "${PEER_VERSION:-1.15.2}" >"$peers/portkey/package.json"
            (cd "$peers/portkey" && npm install --silent)
            ;;
        *)
            echo "unknown peer $1; known: vllm-router sglang-router tensorzero litellm portkey" >&2
            return 2
            ;;
    esac
}

[ $# -gt 0 ] || set -- vllm-router sglang-router tensorzero litellm portkey
for peer in "$@"; do install_peer "$peer"; done
