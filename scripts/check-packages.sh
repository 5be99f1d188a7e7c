#!/usr/bin/env bash
# Checks deploy/ and docker-compose.yml with the tools of those who read them: systemd-analyze, Kubernetes' own schemas, and
# Compose. Starts nothing.
#
#   scripts/check-packages.sh target/debug/antre
#
# Installs what is missing, as root on Debian.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/venv.sh

[ $# -eq 1 ] && [ -x "$1" ] || fail "give the antre binary, which the units start"
antre=$(realpath "$1")
missing=()
command -v systemd-analyze >/dev/null || missing+=(systemd)
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing+=(docker-compose)
install_debian_packages "${missing[@]}"

# The units name the place where antre is installed.
units=$(mktemp -d)
trap 'rm -rf "$units"' EXIT
for unit in deploy/systemd/*.service; do
    sed "s|/usr/local/bin/antre|$antre|" "$unit" >"$units/${unit##*/}"
done
# It prints what it finds wrong, and ends with 0 for some of that.
complaints=$(systemd-analyze verify "$units"/*.service 2>&1) || fail "systemd: $complaints"
[ -z "$complaints" ] || fail "systemd: $complaints"
echo "systemd: $(ls "$units" | wc -l) units"

install_venv target/packages-venv scripts/packages/requirements.txt
for manifest in deploy/kubernetes/*.yaml; do
    # Not Kubernetes' own kinds: their schemas are not part of it.
    grep -qE '^kind: (ScaledObject|Kustomization)$' "$manifest" && continue
    target/packages-venv/bin/kubernetes-validate --strict "$manifest" 2>&1
done

compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)
for profile in "" monitoring; do
    COMPOSE_PROFILES=$profile "${compose[@]}" config >/dev/null || fail "docker-compose.yml, profile \"$profile\""
    echo "compose: profile \"$profile\""
done
