#!/usr/bin/env bash
# Tries docker-compose.yml and the Dockerfile for real where no image registry can be reached. Run with --help for the
# details.
set -euo pipefail

readonly project=antre-try
readonly rust_image=antre-test/rust:debian
readonly base_image=antre-test/base:debian

# More than there are workers, so that by chance alone every worker gets some.
readonly products=20

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root

usage() {
    cat <<END
Usage: scripts/try-compose.sh

Runs the image of antre alone; brings docker-compose.yml up under the project name $project, with images built on this
machine from Debian's packages and the installed Rust toolchain; runs the README's curl session against it; scales it to four workers and looks how
the lanes spread; kills a worker and looks who serves its lanes. Then takes everything down again, volumes included.
Takes two minutes, and seven more the first time. Images stay: they are what makes the next time short.

Needs docker-compose (1.29, or the plug-in of Docker), curl, jq, Rust from rustup, and root the first time (for
scripts/build-test-images.sh).

Environment:
  API_PORT          where the API is published meanwhile (default: a free port)
  RABBITMQ_UI_PORT  the same for the broker's management UI
  DEBIAN_MIRROR, http_proxy, https_proxy  as for scripts/build-test-images.sh
END
}

main() {
    case ${1:-} in
        "") ;;
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
    look_for_tools
    settle_environment
    work=$(mktemp --directory)
    : >"$work/env"
    trap clean_up EXIT

    # The lock must not be inherited by a daemon that this starts.
    "$root/scripts/build-test-images.sh" 9<&- || die "The images of MySQL and RabbitMQ could not be built."
    build_rust_image
    build_antre
    try_the_image_alone

    take_down # what a run left behind that was killed
    say "starting one worker"
    quietly "The services did not start" compose up -d --no-build
    await 120 "Not all services became healthy" healthy 4
    api=$(address_of api 3000)
    management=$(address_of rabbitmq 15672)

    try_readme
    create_products
    try_four_workers
    try_killing_a_worker
    say "it works: $SECONDS s"
}

# One run at a time on this machine, whichever checkout it belongs to: the name of the project is the same.
take_lock() {
    local directory=/run/lock
    [[ -d $directory && -w $directory ]] || directory=/tmp
    local file=$directory/antre-try-compose.lock
    [[ -e $file ]] || : >"$file"
    exec 9<"$file"
    flock --nonblock 9 || die "Another run of this script is under way: wait for it."
}

look_for_tools() {
    local tool
    for tool in curl jq rustc; do
        has "$tool" || die "$tool is missing: install it, then run this again."
    done
    if docker compose version >/dev/null 2>&1; then
        docker_compose=(docker compose)
    elif has docker-compose; then
        docker_compose=(docker-compose)
    else
        die "docker-compose is missing: install it (Debian's package is docker-compose), then run this again."
    fi
}

# Everything that docker-compose.yml asks for, and nothing by chance from the person's own environment.
settle_environment() {
    unset "${!COMPOSE_@}" LANES QUEUE_PREFIX ORDER_TIMEOUT RESERVATION_TTL EVENTS RUST_LOG LOG_FORMAT
    export ANTRE_IMAGE=$project
    export RUST_IMAGE=$rust_image RUNTIME_IMAGE=$base_image
    export MYSQL_IMAGE=antre-test/mysql:debian RABBITMQ_IMAGE=antre-test/rabbitmq:debian
    # The daemon's bridge does not always lead to the package mirrors (or to a proxy on localhost).
    export BUILD_NETWORK=host
    # The builder inside of the daemon: any other could not see local base images.
    export BUILDX_BUILDER=default
    # Not the defaults, so that it shows when one of the places where they stand is forgotten.
    export MYSQL_ROOT_PASSWORD=try-root MYSQL_PASSWORD=try-mysql RABBITMQ_PASSWORD=try-rabbitmq
    # 0: Docker picks a free port.
    export API_PORT=${API_PORT:-127.0.0.1:0} RABBITMQ_UI_PORT=${RABBITMQ_UI_PORT:-127.0.0.1:0}
}

# With an empty file of settings: docker-compose would read the person's .env otherwise.
compose() {
    "${docker_compose[@]}" --project-name "$project" --file "$root/docker-compose.yml" --env-file "$work/env" \
        "$@"
}

# The toolchain of this machine stands in for the official Rust image, with the certificates that this machine trusts:
# where there is no registry, crates.io may be a mirror with a certificate of its own.
build_rust_image() {
    local sysroot recipe certificates=/etc/ssl/certs/ca-certificates.crt
    sysroot=$(rustc --print sysroot)
    # Elsewhere, say in /usr, lib is full of other things.
    [[ -e $sysroot/lib/rustlib/multirust-channel-manifest.toml ]] ||
        die "rustc is not from rustup: only such a toolchain can be copied into an image."
    [[ -e $certificates ]] || die "$certificates is missing: install ca-certificates, then run this again."
    recipe=$({
        rustc --version --verbose
        docker image inspect --format '{{ .Id }}' "$base_image"
        cat "$root/docker/test-images/rust/Dockerfile" "$certificates"
    } | sha256sum | cut --delimiter ' ' --fields 1)
    # A label says what the image was made from: to compare costs less than to send half a gigabyte to the daemon.
    if [[ $(docker image inspect --format '{{ index .Config.Labels "antre.recipe" }}' "$rust_image" 2>/dev/null) \
        == "$recipe" ]]; then
        return
    fi
    say "building $rust_image, about a minute"
    tar --create --dereference --directory "$root/docker/test-images/rust" Dockerfile \
        --directory "$sysroot" bin/cargo bin/rustc lib --directory "${certificates%/*}" "${certificates##*/}" |
        quietly "$rust_image could not be built" docker build --network host --build-arg http_proxy \
            --tag "$rust_image" --label "antre.recipe=$recipe" -
}

build_antre() {
    say "building antre: half a minute, or six when its dependencies must be built too"
    local options=() variable
    for variable in http_proxy https_proxy; do
        [[ -z ${!variable:-} ]] || options+=(--build-arg "$variable=${!variable}")
    done
    quietly "The image of antre could not be built" compose build "${options[@]}" api
    say "built: $(docker image inspect --format '{{ .Size }}' "$ANTRE_IMAGE" | numfmt --to=si)B"
}

# The image with nothing set is the embedded mode, and reachable from outside of its container.
try_the_image_alone() {
    say "running the image alone"
    alone=$(docker run --detach --publish 127.0.0.1::3000 "$ANTRE_IMAGE") || die "The image does not run."
    api=$(docker port "$alone" 3000)
    await 30 "The image alone does not answer" curl --silent --fail --output "$work/log" "http://$api/health/ready"
    request POST /products '{"name": "Kaos Polos"}' >/dev/null || die "The image alone takes no product."
    docker rm --force --volumes "$alone" >/dev/null
    alone=
}

# The README's own commands, and the answers that it shows for them. A text with "…" in it stands for any.
try_readme() {
    say "running the README's session"
    local session shown answers i
    session=$(awk '
        /^```sh$/ { block = ""; inside = 1; next }
        /^```$/ { if (inside && block ~ /curl -s localhost:3000/) { printf "%s", block; exit } inside = 0 }
        inside { block = block $0 "\n" }' "$root/README.md")
    readarray -t shown < <(sed --quiet 's/^# {/{/p' <<<"$session")
    [[ ${#shown[@]} -gt 0 ]] || die "README.md shows no session with curl -s localhost:3000 and its answers any more."
    # Answers end without a line break.
    readarray -t answers < <(bash -c "${session//localhost:3000/$api}" | sed 's/}{"code"/}\n{"code"/g')
    for i in "${!shown[@]}"; do
        same "${answers[i]-}" "${shown[i]}" ||
            die "Answer $((i + 1)) of the README's session should be ${shown[i]} and is ${answers[i]:-missing}"
    done
    [[ ${#answers[@]} -eq ${#shown[@]} ]] ||
        die "The README's session gave ${#answers[@]} answers, and the README shows ${#shown[@]}."
}

same() { # answer, what README.md shows
    local pattern
    pattern=$(sed 's/[][\\*?]/\\&/g; s/"[^"]*…[^"]*"/"*"/g' <<<"$2")
    # shellcheck disable=SC2053 # a pattern
    [[ $1 == $pattern ]]
}

create_products() {
    say "creating $products products and ordering each of them"
    local i id
    ids=(1) # the README's
    for ((i = 1; i <= products; i++)); do
        id=$(request POST /products "{\"name\": \"Topi $i\"}" | jq .data.id) || die "Product $i could not be created."
        ids+=("$id")
    done
    for id in "${ids[@]}"; do
        request PUT "/products/$id/inventory" '{"stock": 20}' >/dev/null ||
            die "Product $id could not be given a stock."
    done
    order "${ids[@]}"
}

try_four_workers() {
    say "starting three more workers"
    quietly "It could not be scaled to four workers" compose up -d --no-build --scale worker=4
    await 60 "Not all services became healthy with four workers" healthy 7
    await 30 "Not every lane is consumed by all four workers and served by one" lanes_are_served_by_one_of 4
    [[ $(servers | wc -l) -gt 1 ]] || die "One worker serves all lanes, although there are four."
    say "lanes of each worker: $(servers | cut --delimiter ' ' --fields 1 | paste --serial --delimiters ' ')"
    order "${ids[@]}"
}

try_killing_a_worker() {
    local busiest container begun orphans
    busiest=$(servers | awk 'NR == 1 { print $2 }')
    readarray -t orphans < <(lanes |
        jq --raw-output --arg server "$busiest" 'select(.servers == [$server]).lane | split(".")[-1]')
    container=$(container_at "$busiest")
    say "killing the worker that serves ${#orphans[@]} lanes"
    begun=$(date +%s%N)
    docker kill "$container" >/dev/null # it stays down: what a person stops, Docker does not restart
    order "${orphans[0]}"
    say "an order in one of them was answered 201 after $((($(date +%s%N) - begun) / 1000000)) ms"
    await 30 "The lanes of the killed worker are not served by the others" lanes_are_served_by_one_of 3
    ! servers | grep --quiet " $busiest\$" || die "The broker still gives lanes to the worker that was killed."
    order "${orphans[@]}"
}

# One JSON object for each lane: how many workers consume it, and the addresses of those that serve it.
lanes() {
    curl --silent --fail --user "antre:$RABBITMQ_PASSWORD" "http://$management/api/consumers" |
        jq --compact-output 'map(select(.queue.name | startswith("orders.product."))) | group_by(.queue.name)[]
            | {lane: .[0].queue.name, workers: length,
               servers: map(select(.active).channel_details.peer_host)}'
}

# How many lanes each worker serves, and its address; the busiest one first.
servers() {
    lanes | jq --raw-output '.servers[]' | sort | uniq --count | sort --numeric-sort --reverse | sed 's/^ *//'
}

lanes_are_served_by_one_of() { # workers
    [[ $(lanes | jq --slurp --argjson workers "$1" --argjson lanes "${#ids[@]}" \
        'length == $lanes and all(.[]; .workers == $workers and (.servers | length) == 1)') == true ]]
}

container_at() { # address
    containers |
        xargs docker inspect --format '{{ .Id }}{{ range .NetworkSettings.Networks }} {{ .IPAddress }}{{ end }}' |
        awk -v address="$1" '$2 == address { print $1 }'
}

healthy() { # how many containers
    [[ $(containers --filter health=healthy | wc -l) -eq $1 ]]
}

containers() { # options of docker ps
    docker ps --quiet --filter "label=com.docker.compose.project=$project" "$@"
}

address_of() { # service, port
    local address
    address=$(compose port "$1" "$2") || die "Port $2 of $1 is not published."
    # The port alone would not do: API_PORT may name an address.
    echo "${address/0.0.0.0/127.0.0.1}"
}

order() { # products...
    local product answer
    for product in "$@"; do
        answer=$(request POST /orders "{\"product_id\": $product, \"total\": 1}") || true
        [[ $(jq .code <<<"$answer") == 201 ]] || die "An order of product $product was not answered 201 but: $answer"
    done
}

request() { # method, path, body
    curl --silent --show-error --fail-with-body --max-time 20 --request "$1" "http://$api/api$2" \
        --header 'content-type: application/json' --data "$3"
}

await() { # seconds, what to say otherwise, condition...
    local deadline=$((SECONDS + $1)) complaint=$2
    shift 2
    until "$@"; do
        [[ $SECONDS -lt $deadline ]] || die "$complaint in time."
        sleep 0.2
    done
}

# Runs a command quietly; what it wrote is shown when it fails. In a shell of its own, so that what clean_up says after
# a signal does not go where the command's output goes.
quietly() { # what to say then, command...
    local complaint=$1
    shift
    ("$@") >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        die "$complaint: see above."
    }
}

take_down() {
    quietly "What an earlier run started could not be removed" compose down --volumes --remove-orphans
}

clean_up() {
    local status=$? logs=${TMPDIR:-/tmp}/$project.log
    if [[ $status -ne 0 && -n $(containers) ]] && compose logs --no-color >"$logs" 2>&1; then
        say "what the services had to say is in $logs"
    fi
    say "taking everything down"
    [[ -z ${alone:-} ]] || docker rm --force --volumes "$alone" >/dev/null
    take_down
    # Its layers stay as long as those that a next build begins with.
    docker image rm "$ANTRE_IMAGE" >/dev/null 2>&1 || true
    rm -rf "$work"
}

has() {
    command -v "$1" >/dev/null
}

say() {
    echo "$*" >&2
}

die() {
    say "try-compose.sh: $*"
    exit 1
}

main "$@"
