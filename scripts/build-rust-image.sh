#!/usr/bin/env bash
# Builds antre-test/rust:debian, which stands in for the official Rust image where no registry can be reached: the toolchain
# and the certificates of this machine over the base image of scripts/build-test-images.sh. The certificates, because
# crates.io may be a mirror there, with its own. Needs Rust from rustup; takes about a minute, and nothing when it is current.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly image=antre-test/rust:debian base=antre-test/base:debian
readonly recipe=docker/test-images/rust certificates=/etc/ssl/certs/ca-certificates.crt

die() {
    echo "build-rust-image.sh: $*" >&2
    exit 1
}

scripts/build-test-images.sh
sysroot=$(rustc --print sysroot)
# Elsewhere, for example in /usr, lib is full of other things.
[[ -e $sysroot/lib/rustlib/multirust-channel-manifest.toml ]] ||
    die "rustc is not from rustup: only such a toolchain can be copied into an image."
[[ -e $certificates ]] || die "$certificates is missing: install ca-certificates, then run this again."
hash=$({
    rustc --version --verbose
    docker image inspect --format '{{ .Id }}' "$base"
    cat "$recipe/Dockerfile" "$certificates"
} | sha256sum | cut --delimiter ' ' --fields 1)
# A label names what the image was made from: to compare is faster than to send half a gigabyte to the daemon. The builder
# named default is the one inside of the daemon, and any other could not see the local base image.
if [[ $(docker image inspect --format '{{ index .Config.Labels "antre.recipe" }}' "$image" 2>/dev/null) != "$hash" ]]; then
    tar --create --dereference --directory "$recipe" Dockerfile --directory "$sysroot" bin/cargo bin/rustc lib \
        --directory "${certificates%/*}" "${certificates##*/}" |
        BUILDX_BUILDER=default docker build --quiet --network host --build-arg http_proxy --tag "$image" \
            --label "antre.recipe=$hash" - >/dev/null
fi
