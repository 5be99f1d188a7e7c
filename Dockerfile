# antre, from source to a small image. Both base images can be replaced, for example by those of your own registry:
#
#   docker build --build-arg RUST_IMAGE=… --build-arg RUNTIME_IMAGE=… .
#
# The binary is linked to glibc, and runs on the glibc it was built with or a later one: keep the two of one Debian
# release. Nothing here needs BuildKit.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS chef
RUN cargo install cargo-chef --version 0.1.78 --locked
WORKDIR /antre

# The recipe follows from Cargo.toml and Cargo.lock, and stays the same while only code changes.
FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

# So all dependencies are their own layer, which is built again only when they change.
FROM chef AS builder
COPY --from=planner /antre/recipe.json .
RUN cargo chef cook --release --locked --bin antre --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --bin antre

FROM ${RUNTIME_IMAGE}
# For amqps:// and for MySQL over TLS. The slim image has none, and a copy needs no package lists.
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=builder /antre/target/release/antre /usr/local/bin/
# The embedded mode stores antre.db here. The owner by number, because Kubernetes can check only of a number that it is not root.
RUN install --directory --owner 10001 --group 10001 /var/lib/antre
WORKDIR /var/lib/antre
# So the orders outlive the container, whatever it was started with. Name the volume, to find it again:
# `docker run -p 3000:3000 -v antre:/var/lib/antre antre`
VOLUME /var/lib/antre
USER 10001:10001
# Inside of a container, no client reaches a server on 127.0.0.1: `docker run --publish` leads to the container's address.
# Its argument decides who may reach the published port.
ENV LISTEN_ADDR=0.0.0.0:3000
EXPOSE 3000
# Asks at LISTEN_ADDR. A worker listens because the variable above is set.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["antre", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["antre"]
