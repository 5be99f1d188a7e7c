#!/usr/bin/env bash
# Tests a built antre from outside against its contract, apispec.json, with schemathesis.
#
#   scripts/schemathesis.sh target/debug/antre
#
# Takes about a minute. Needs python3 (3.10 or newer); installs schemathesis under target/ the first time.
# In CI the seed is fixed, so that a red run is the change's doing; elsewhere it is random, so that every run looks
# somewhere else. SCHEMATHESIS_SEED=<number> sets it. The same seed generates the same requests as far as the time
# reaches, save for the order ids that antre makes up anew.
# Exits with schemathesis's own code: 0 is good, 1 means that it found something. 2 means that it never started.
set -euo pipefail

version=4.32.5
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/target/schemathesis-venv
python=$venv/bin/python

fail() {
    echo "schemathesis.sh: $1" >&2
    exit 2
}

main() {
    [ $# -eq 1 ] || fail "give the path of the antre binary, and nothing else"
    if [ ! -f "$1" ] || [ ! -x "$1" ]; then
        fail "$1 is not a program that can be run; cargo build makes target/debug/antre"
    fi
    local antre
    antre=$(realpath "$1")
    install_schemathesis
    cd "$root"
    dir=$(mktemp -d)
    trap clean_up EXIT
    start_server "$antre"
    create_products
    run_schemathesis
}

install_schemathesis() {
    [ "$("$venv/bin/st" --version 2>/dev/null)" != "st, version $version" ] || return 0
    command -v python3 >/dev/null || fail "python3 is missing"
    mkdir -p "$root/target"
    # Debian's python3 comes without what venv needs.
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
            fail "python3 cannot make virtual environments; install it (on Debian: apt-get install python3-venv)"
        fi
        { apt-get update -qq && apt-get install -qq -y python3-venv; } >&2 ||
            fail "python3 cannot make virtual environments, and apt-get could not install python3-venv"
    fi
    python3 -m venv --clear "$venv" || fail "python3 could not make a virtual environment at $venv"
    "$python" -m pip install --quiet --disable-pip-version-check "schemathesis==$version" ||
        fail "pip could not install schemathesis $version (it needs Python 3.10 or newer and a package index)"
}

start_server() {
    # The port is free when it is picked; should somebody else take it before antre does, antre says so and ends.
    local port
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    # In a directory of its own, so that no .env and no database of somebody else is used.
    (
        cd "$dir"
        exec env -u AMQP_URL LISTEN_ADDR="127.0.0.1:$port" DATABASE_URL="sqlite://$dir/antre.db" RUST_LOG=warn \
            "$1" serve
    ) >"$dir/antre.log" 2>&1 &
    server=$!
    local deadline=$((SECONDS + 30))
    until call GET /health/ready >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || fail "antre ended before it was ready"
        [ "$SECONDS" -lt "$deadline" ] || fail "antre was not ready within 30 s"
        sleep 0.3
    done
}

# One product that can take any order, and one that can take a single piece.
create_products() {
    local stocks=(2147483647 1) id
    for id in 1 2; do
        { call POST /api/products '{"name": "Kaos Polos"}' &&
            call PUT "/api/products/$id/inventory" "{\"stock\": ${stocks[id - 1]}}"; } >/dev/null ||
            fail "antre did not create product $id and its stock"
    done
}

run_schemathesis() {
    local seed=${SCHEMATHESIS_SEED:-$([ -n "${CI:-}" ] && echo 1 || echo $RANDOM)} code=0
    echo "seed $seed; again with the same: SCHEMATHESIS_SEED=$seed scripts/schemathesis.sh <antre>"
    export HYPOTHESIS_STORAGE_DIRECTORY=$dir/hypothesis
    # Schemathesis leaves out the call that it got the contract from, unless a filter asks for it.
    timeout --kill-after=10 300 "$venv/bin/st" --config-file scripts/schemathesis.toml run "$url/apispec.json" \
        --include-path-regex ^/ --checks all --phases examples,coverage,fuzzing,stateful --mode all \
        --seed "$seed" || code=$?
    [ "$code" -ne 124 ] || echo "schemathesis.sh: schemathesis did not end within 300 s" >&2
    kill -0 "$server" 2>/dev/null || echo "schemathesis.sh: antre ended during the tests" >&2
    return "$code"
}

# Method, path and, where there is one, JSON body. Fails unless the answer is 2xx.
call() {
    "$python" - "$url$2" "$1" "${3:-}" <<'PYTHON'
import sys, urllib.request
url, method, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, {"Content-Type": "application/json"}, method=method)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open(request, timeout=5).read().decode())
PYTHON
}

clean_up() {
    local code=$?
    trap - EXIT
    if [ -n "${server:-}" ]; then
        kill "$server" 2>/dev/null || true
        local deadline=$((SECONDS + 15))
        while kill -0 "$server" 2>/dev/null; do
            if [ "$SECONDS" -ge "$deadline" ]; then
                echo "schemathesis.sh: antre did not stop within 15 s of SIGTERM" >&2
                kill -KILL "$server"
                break
            fi
            sleep 0.1
        done
        wait "$server" 2>/dev/null || true
    fi
    if [ "$code" -ne 0 ] && [ -s "$dir/antre.log" ]; then
        echo "--- what antre logged ---" >&2
        tail -n 200 "$dir/antre.log" >&2
    fi
    rm -rf "$dir"
    exit "$code"
}

main "$@"
