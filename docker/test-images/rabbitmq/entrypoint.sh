#!/bin/bash
# Starts the broker. RABBITMQ_DEFAULT_USER, RABBITMQ_DEFAULT_PASS and RABBITMQ_DEFAULT_VHOST (guest, guest and /) are
# read by RabbitMQ itself when its data directory is new. A first argument other than "rabbitmq-server" is run instead.
set -euo pipefail

if [[ $# -gt 0 && $1 != rabbitmq-server ]]; then
    exec "$@"
fi

# Some Docker daemons run without a limit of open files, and Erlang sizes tables by that limit.
if [[ $(ulimit -n) == unlimited || $(ulimit -n) -gt 65536 ]]; then
    ulimit -n 65536
fi

# There is no systemd; with this the start script replaces itself by the broker instead of staying as its parent. So
# the broker is process 1, gets Docker's SIGTERM itself, and shuts down cleanly.
export RUNNING_UNDER_SYSTEMD=true

# Not the wrapper of the same name in /usr/sbin: that one sends standard output to a file.
exec /usr/lib/rabbitmq/bin/rabbitmq-server
