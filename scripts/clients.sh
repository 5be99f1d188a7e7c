#!/usr/bin/env bash
# Generates clients from apispec.json with four generators, compiles them, and runs a whole session with each against a
# built antre: 201, 202, 400, 404, 409, 422, 503, and lists to their end. Then once more against answers with fields that the
# contract does not name yet, because answers are open.
#
#   scripts/clients.sh target/debug/antre
#
# Python twice (openapi-generator, openapi-python-client), Java (openapi-generator, its `native` library) and Rust
# (progenitor). Takes a minute, and two more the first time, when it installs the generators under target/ and compiles
# progenitor. Needs python3 (3.10 or newer), cargo, and a JDK (17 or newer); as root on Debian it installs what is missing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$root/target/clients
venv=$work/venv
python=$venv/bin/python
# What pom.xml of a generated client asks Maven for, without Maven: openapi-generator's own jar has Jackson in it.
annotations=/usr/share/java/jakarta-annotation-api.jar

. "$root/scripts/venv.sh"

main() {
    [ $# -eq 1 ] || fail "give the path of the antre binary, and nothing else"
    if [ ! -f "$1" ] || [ ! -x "$1" ]; then
        fail "$1 is not a program that can be run; cargo build makes target/debug/antre"
    fi
    local antre
    antre=$(realpath "$1")
    cd "$root"
    mkdir -p "$work"
    install_java
    install_venv "$venv" scripts/clients/requirements.txt
    jar=$("$python" -c 'import openapi_generator_cli, pathlib; print(pathlib.Path(openapi_generator_cli.__file__).with_name("openapi-generator.jar"))')
    # The longest first, so that it compiles while the others generate.
    CARGO_TARGET_DIR=$work/rust cargo build --quiet --locked --manifest-path scripts/clients/rust/Cargo.toml &
    local rust=$!
    generate_python
    generate_java
    wait "$rust"
    "$python" scripts/clients/run.py "$antre" \
        "openapi-generator, Python: env PYTHONPATH=$work/python $python scripts/clients/openapi_generator_session.py" \
        "openapi-python-client: env PYTHONPATH=$work $python scripts/clients/openapi_python_client_session.py" \
        "openapi-generator, Java: java -cp $work/java/classes:$jar:$annotations Session" \
        "progenitor, Rust: $work/rust/debug/generated-client"
}

install_java() {
    local missing=()
    command -v javac >/dev/null || missing+=(default-jdk-headless)
    [ -f "$annotations" ] || missing+=(libjakarta-annotation-api-java)
    install_debian_packages "${missing[@]}"
}

# Generates with openapi-generator, which tells what it writes at length.
openapi_generator() {
    java -jar "$jar" generate -i apispec.json "$@" >"$work/openapi-generator.log" 2>&1 ||
        { cat "$work/openapi-generator.log" >&2; fail "openapi-generator does not take apispec.json"; }
}

generate_python() {
    rm -rf "$work/python" "$work/antre_httpx"
    openapi_generator -g python -o "$work/python" --additional-properties=packageName=antre_client
    # It warns about what it cannot read, and leaves it out.
    PATH=$venv/bin:$PATH openapi-python-client generate --path apispec.json --meta none \
        --output-path "$work/antre_httpx" --fail-on-warning
}

generate_java() {
    rm -rf "$work/java"
    openapi_generator -g java -o "$work/java" \
        --additional-properties=library=native,openApiNullable=false,useJakartaEe=true
    find "$work/java/src/main" scripts/clients -name '*.java' -print0 |
        xargs -0 javac -nowarn -XDsuppressNotes -d "$work/java/classes" -cp "$jar:$annotations"
}

main "$@"
