# Python environments under target/, for the scripts that source this. Needs python3 (3.10 or newer) and a package index.

fail() {
    echo "${0##*/}: $1" >&2
    exit 2
}

# Installs packages of Debian, as root on Debian; fails otherwise and names them.
install_debian_packages() { # packages...
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "needs, by their names in Debian: $*"
    fi
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } >&2 ||
        fail "apt-get could not install $*"
}

# Makes an environment with what a file lists, unless it is there.
install_venv() { # directory, requirements.txt
    ! cmp -s "$2" "$1/requirements.txt" || return 0
    # Debian's python3 comes without what venv needs.
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_debian_packages python3-venv
    mkdir -p "${1%/*}"
    python3 -m venv --clear "$1" || fail "python3 could not make a virtual environment at $1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2" ||
        fail "pip could not install what $2 lists (it needs Python 3.10 or newer and a package index)"
    cp "$2" "$1/requirements.txt"
}
