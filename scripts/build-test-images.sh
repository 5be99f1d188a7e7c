#!/bin/bash
# Builds the Docker images of MySQL and RabbitMQ that tests and benchmarks use where no image registry can be reached,
# only a mirror of Debian's packages. Run with --help for the details.
set -euo pipefail

readonly base=antre-test/base:debian
readonly mysql=antre-test/mysql:debian
readonly rabbitmq=antre-test/rabbitmq:debian

# The images carry the hash of the recipe they were made from under this label. A later run compares it.
readonly recipe_label=antre.recipe

readonly mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")/../docker/test-images" && pwd)
readonly recipes

usage() {
    cat <<END
Usage: scripts/build-test-images.sh [--force]

Builds $mysql and $rabbitmq from packages of Debian sid, on a common
$base. Images that are there and were made from the present recipes (docker/test-images) stay as
they are; --force builds all three again, with the packages of today.

Building needs root (debootstrap). If Docker or debootstrap is missing, it is installed; if the Docker daemon does not
run, it is started.

Environment:
  DEBIAN_MIRROR  where packages come from, an http:// address (default http://deb.debian.org/debian)
  http_proxy     is used for all downloads
END
}

main() {
    local force=no
    case ${1:-} in
        "") ;;
        --force) force=yes ;;
        -h | --help)
            usage
            return
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac

    take_lock
    ensure_docker

    local base_recipe mysql_recipe rabbitmq_recipe
    base_recipe=$(declare -f build_base | hash)
    mysql_recipe=$(recipe_of mysql "$base_recipe")
    rabbitmq_recipe=$(recipe_of rabbitmq "$base_recipe")

    if [[ $force == no ]] && is_current "$mysql" "$mysql_recipe" && is_current "$rabbitmq" "$rabbitmq_recipe"; then
        say "$mysql and $rabbitmq are up to date"
        return
    fi

    work=$(mktemp --directory "${TMPDIR:-/var/tmp}/antre-test-images.XXXXXX")
    trap clean_up EXIT
    # Every build below is a job in its own process group, so that clean_up can end it with all its children.
    set -o monitor

    if [[ $force == yes ]] || ! is_current "$base" "$base_recipe"; then
        ensure_debootstrap
        quietly "$base" build_base "$work/root" "$base_recipe" &
        wait $! || exit 1
    fi

    # Both at the same time: either spends much of its time on a single core.
    local builds=() build failed=no
    if [[ $force == yes ]] || ! is_current "$mysql" "$mysql_recipe"; then
        quietly "$mysql" build_image "$mysql" "$recipes/mysql" "$mysql_recipe" "$force" &
        builds+=($!)
    fi
    if [[ $force == yes ]] || ! is_current "$rabbitmq" "$rabbitmq_recipe"; then
        quietly "$rabbitmq" build_image "$rabbitmq" "$recipes/rabbitmq" "$rabbitmq_recipe" "$force" &
        builds+=($!)
    fi
    for build in "${builds[@]}"; do
        wait "$build" || failed=yes
    done
    [[ $failed == no ]] || exit 1

    # The images that were replaced have lost their names and would lie around for ever.
    docker image prune --force --filter "label=$recipe_label" >/dev/null
    say "done"
}

# One run at a time on this machine, whichever checkout it belongs to: the names of the images are the same.
take_lock() {
    local directory=/run/lock
    [[ -d $directory && -w $directory ]] || directory=/tmp
    local file=$directory/antre-test-images.lock

    # Made by one, opened for reading by all: kernels refuse to open another user's file for writing in such a
    # directory.
    [[ -e $file ]] || : >"$file"
    exec 9<"$file"
    if ! flock --nonblock 9; then
        say "waiting for another run of this script"
        flock 9
    fi
}

ensure_docker() {
    if ! has docker; then
        install_packages Docker docker.io
        # Newer releases of Debian have the client in its own package.
        has docker || install_packages "the Docker client" docker-cli
    fi

    local answer
    if answer=$(docker version 2>&1); then
        return
    fi
    if [[ $answer == *"permission denied"* ]]; then
        die "This user may not talk to the Docker daemon: run as root, or as a member of the group docker."
    fi
    if [[ -n ${DOCKER_HOST:-} ]]; then
        die "The Docker daemon at DOCKER_HOST=$DOCKER_HOST does not answer: start it, or unset DOCKER_HOST."
    fi
    if ! is_root; then
        die "The Docker daemon does not answer and only root can start it: start it, then run this again."
    fi

    say "starting the Docker daemon"
    local log="journalctl --unit docker"
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker || die "systemd could not start the Docker daemon: see $log."
    elif has dockerd; then
        log=/var/log/dockerd.log
        # It outlives this script: it must not inherit the lock, and be no job that clean_up ends.
        setsid dockerd >>"$log" 2>&1 </dev/null 9<&- &
        disown
    else
        die "The Docker daemon does not answer and there is no dockerd to start: install docker.io, then run this again."
    fi
    local second
    for ((second = 0; second < 60; second++)); do
        if docker version >/dev/null 2>&1; then
            return
        fi
        sleep 1
    done
    die "The Docker daemon was started but does not answer after a minute: see $log."
}

ensure_debootstrap() {
    is_root || die "Building $base takes root, for debootstrap: run this script as root once."
    # The keyring is part of every Debian, but not of its relatives.
    if ! has debootstrap || [[ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
        install_packages debootstrap debootstrap debian-archive-keyring
    fi
}

install_packages() { # what for, packages...
    local what=$1
    shift
    if ! is_root || ! has apt-get; then
        die "$what is missing, and only root on Debian can have it installed here: install it, then run this again."
    fi
    say "installing $*"
    # Often the package lists are there and good: they are fetched when it does not work without, whatever their date of
    # expiry, which has passed on a mirror that stands still.
    local apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get --option DPkg::Lock::Timeout=300
        --option Acquire::Check-Valid-Until=false)
    local install=("${apt_get[@]}" install --yes --no-install-recommends "$@") output
    if ! output=$("${install[@]}" 2>&1) && ! output=$("${apt_get[@]}" update 2>&1 && "${install[@]}" 2>&1); then
        echo "$output" >&2
        die "$what is missing and apt-get could not install it: see above."
    fi
}

# debootstrap stands in for the `FROM debian:sid` that would need a registry.
build_base() { # directory to work in, recipe
    local root=$1 recipe=$2

    # Debian sid, because MySQL is in no release of Debian. In its own mount namespace, because debootstrap mounts
    # /proc and more in the new root: so they are gone when it ends, however it ends, before anybody removes that root.
    unshare --mount debootstrap --force-check-gpg --variant=minbase sid "$root" "$mirror"

    # A mirror may stand still, and then the lists of sid expire after a week. The signature is checked all the same.
    # No list of packages in the image has a use for caches either.
    cat >"$root/etc/apt/apt.conf.d/antre" <<'END'
Acquire::Check-Valid-Until "false";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
END

    # dpkg need not fsync every file: an image that is half built is discarded. The manuals are not needed.
    cat >"$root/etc/dpkg/dpkg.cfg.d/antre" <<'END'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
END
    rm -rf "$root"/usr/share/{doc,info,locale,man}/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

    # Packages must not start their servers while an image is being built.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"

    # Named only when all of it is there: an import of half a tar file may well succeed.
    local id
    id=$(tar --create --numeric-owner --directory "$root" . |
        docker import --change "LABEL $recipe_label=$recipe" -)
    docker tag "$id" "$base"
}

build_image() { # name, directory of its recipe, recipe, whether to forget the cache (yes or no)
    local options=(--tag "$1" --label "$recipe_label=$3")
    if [[ $4 == yes ]]; then
        options+=(--no-cache)
    fi
    # The host's network, because the daemon's bridge does not always lead to the mirror (or to a proxy on localhost).
    # The builder named default is the one inside of the daemon; any other could not see the local base image. Docker
    # without buildx does not know the variable and has its old builder, which is just as good here.
    BUILDX_BUILDER=default docker build "${options[@]}" --network host --build-arg http_proxy "$2"
}

recipe_of() { # image's directory, recipe of the base image
    { echo "$2" && cd "$recipes/$1" && sha256sum -- *; } | hash
}

hash() {
    sha256sum | cut --delimiter ' ' --fields 1
}

is_current() { # image, recipe
    [[ $(docker image inspect --format "{{ index .Config.Labels \"$recipe_label\" }}" "$1" 2>/dev/null) == "$2" ]]
}

# Runs a command quietly; what it wrote is shown when it fails.
quietly() { # what it makes, command...
    local what=$1 log status
    shift
    log=$(mktemp "$work/log.XXXXXX")
    say "building $what, about half a minute"
    # In its own shell, and its status is read afterwards: under "if" or "||", "set -e" would be without effect
    # in all that the command calls.
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    if [[ $status -ne 0 ]]; then
        cat "$log" >&2
        die "Building $what failed: see above."
    fi
}

# KILL, because nothing is left for the builds to tidy up: debootstrap's mounts go with its namespace, and the daemon
# gives up what it does for a client that has gone.
clean_up() {
    local job
    for job in $(jobs -p); do
        kill -KILL -- "-$job" || true
    done 2>/dev/null
    wait 2>/dev/null
    rm -rf --one-file-system "$work"
}

has() {
    command -v "$1" >/dev/null
}

is_root() {
    [[ $EUID -eq 0 ]]
}

say() {
    echo "$*" >&2
}

die() {
    echo "build-test-images.sh: $*" >&2
    exit 1
}

main "$@"
