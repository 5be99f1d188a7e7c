#!/usr/bin/env bash
# Tests a running antre against its contract, apispec.json, with schemathesis. It has two products, 1 with plenty in stock
# and 2 with one piece. The test `schemathesis` starts such an antre and this script:
#
#   cargo test --test it schemathesis -- --ignored
#
# Takes about a minute, and one more the first time, when it installs schemathesis under target/. In CI the seed is fixed,
# so that a failure comes from the change; elsewhere it is random. SCHEMATHESIS_SEED=<number> sets it. The same seed generates
# the same requests until the time is over, except for the ids of orders.
# Exits with schemathesis's own code: 0 is good, 1 means that it found something. 2 means that it never started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/venv.sh

[ $# -eq 1 ] || fail "give the URL of a running antre, and nothing else"
venv=$PWD/target/schemathesis-venv
install_venv "$venv" scripts/schemathesis/requirements.txt

seed=${SCHEMATHESIS_SEED:-$([ -n "${CI:-}" ] && echo 1 || echo $RANDOM)}
echo "seed $seed; again with the same: SCHEMATHESIS_SEED=$seed"
HYPOTHESIS_STORAGE_DIRECTORY=$(mktemp -d)
export HYPOTHESIS_STORAGE_DIRECTORY
trap 'rm -rf "$HYPOTHESIS_STORAGE_DIRECTORY"' EXIT
# Schemathesis leaves out the call that it got the contract from, unless a filter asks for it.
timeout --kill-after=10 300 "$venv/bin/st" --config-file scripts/schemathesis/schemathesis.toml run "$1/apispec.json" \
    --include-path-regex ^/ --checks all --exclude-checks use_after_free --phases examples,coverage,fuzzing,stateful --mode all --seed "$seed"
