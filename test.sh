#!/usr/bin/env bash
# Runs every check: format, lints, documentation links, dependencies, the contract and clients generated from it against the
# running binary, and all tests, also those on a real MySQL and RabbitMQ. It installs what it needs.
#
# For a quick answer while you work, `cargo test` runs what needs no server.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

step "Format"
cargo fmt --all --check

step "Lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "Documentation links"
# The crate is read in its source: links to private parts are welcome.
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --locked

step "Dependencies: licences, sources, duplicates"
if ! cargo deny --version >/dev/null 2>&1; then
    cargo install cargo-deny --locked
fi
# The check for advisories needs GitHub: `cargo deny check advisories` where it can be reached.
cargo deny --workspace check bans licenses sources

step "The contract, against the running binary"
# Alone on the machine: a slow answer counts as a breach.
cargo test --workspace --locked --test it schemathesis -- --ignored --nocapture

step "Generated clients, against the running binary"
scripts/clients.sh target/debug/antre # built by the step before

step "Packages: systemd, Kubernetes, Compose"
scripts/check-packages.sh target/debug/antre

step "Tests, with servers"
scripts/build-test-images.sh
. scripts/venv.sh
# promtool: the checker of Prometheus's rules and metrics.
command -v promtool >/dev/null || install_debian_packages prometheus
# The pages are looked at in a browser.
command -v chromedriver >/dev/null || install_debian_packages chromium chromium-driver
# `compose` builds the image from source, which takes as long as all of this; run it after changes of the images:
# cargo test --test it compose -- --ignored
cargo test --workspace --locked -- --include-ignored --skip schemathesis --skip compose

step "Traces, in a build with them"
cargo clippy --workspace --locked --features antre/otel --lib -- -D warnings
cargo test --workspace --locked --features antre/otel --test it traces -- --include-ignored
