#!/usr/bin/env bash
# What the Makefile's targets do: install what is missing, build, start, test, check. `scripts/dev.sh help` lists them.
#
# Nothing here is needed to use cargo by hand; it is the same commands, with the set-up in front of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly CONFIG="${CONFIG:-config/tollkeeper.toml}" # the file that `run` starts with
readonly FEATURES="${FEATURES:-}"                   # cargo features of the gateway: cuda, vulkan
readonly LISTEN="${LISTEN:-}"                       # overrides the address in the file
readonly TOOLS="target/tools"                       # tools that are not installed on the system, only kept here
readonly VENV=".venv"
readonly CARGO_DENY_VERSION="0.20.2"
readonly CHAT_TEMPLATES_VERSION="0.3.36" # of llama-cpp-python

locked=()
[[ -z "${CI:-}" ]] || locked=(--locked)

say() { printf '\n==> %s\n' "$*" >&2; }
die() { printf '\nerror: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- set-up -----------------------------------------------------------------------------------------------------------

# bindgen needs libclang and the compiler's own headers beside it; both come with libclang-dev.
have_libclang() { [[ -n "${LIBCLANG_PATH:-}" ]] || have clang || compgen -G '/usr/lib/llvm-*/lib/libclang*.so' >/dev/null; }

have_venv() { [[ -x "$VENV/bin/python" ]] || python3 -c 'import ensurepip, venv' 2>/dev/null; }

have_postgres() { have postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

# Prints the Debian packages whose content is missing: the ones to build with, and those the tests need too if told so.
missing_packages() {
    local for_tests="$1"
    have cmake || echo cmake
    have c++ || echo g++
    have_libclang || echo libclang-dev
    have ccache || echo ccache # lets the debug and the release build share llama.cpp's objects
    if [[ "$for_tests" == yes ]]; then
        have redis-server || echo redis-server
        have_postgres || echo postgresql
        have_venv || echo python3-venv
    fi
}

# Installs the missing system packages as root; otherwise names them, and the command, and stops.
system_packages() {
    local for_tests="$1" missing
    mapfile -t missing < <(missing_packages "$for_tests")
    ((${#missing[@]} > 0)) || return 0
    local command="apt-get install -y --no-install-recommends ${missing[*]}"
    have apt-get || die "these are missing: ${missing[*]} (Debian's names). Install them with your system's package manager and try again."
    [[ "$(id -u)" == 0 ]] || die "these packages are missing: ${missing[*]}
Install them and try again:
    sudo apt-get update && sudo $command"
    say "installing ${missing[*]}"
    apt-get update -qq
    # shellcheck disable=SC2086 # the command is made of words on purpose
    DEBIAN_FRONTEND=noninteractive $command </dev/null
}

# Rust comes from rustup, because the compiler in Debian's and Ubuntu's releases is older than what is needed.
rust_toolchain() {
    local needed found
    needed="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
    local advice="Get it with rustup (https://rustup.rs; Debian 13 and Ubuntu 24.04 also have it as a package):
    sudo apt-get install -y rustup && rustup default stable
then open a new shell, or run '. ~/.cargo/env', and try again."
    # shellcheck source=/dev/null
    [[ ! -f "$HOME/.cargo/env" ]] || . "$HOME/.cargo/env"
    have cargo || die "cargo is missing: Rust $needed or newer is needed, with rustfmt and clippy for the checks.
$advice"
    found="$(rustc --version | cut -d' ' -f2)"
    [[ "$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n1)" == "$needed" ]] ||
        die "Rust $found is too old: $needed or newer is needed.
$advice"
}

# The virtual environment in which the official OpenAI client drives the gateway; made anew when its list changes.
python_environment() {
    local list="tests/python/requirements.txt" stamp="$VENV/requirements.installed"
    [[ -f "$list" ]] || die "$list is missing"
    if ! cmp -s "$list" "$stamp"; then
        say "installing the Python test packages into $VENV"
        [[ -x "$VENV/bin/python" ]] || python3 -m venv "$VENV"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list" </dev/null
        cp "$list" "$stamp"
    fi
}

# promtool checks the alert rules. Installing Debian's prometheus would start a server, so only the tool is taken out of it.
promtool_binary() {
    if have promtool; then command -v promtool && return; fi
    if [[ ! -x "$TOOLS/promtool" ]]; then
        have apt-get || die "promtool is missing: install Prometheus (it comes with it) and try again."
        say "fetching promtool into $TOOLS"
        local fetched
        fetched="$(mktemp -d)"
        chmod 755 "$fetched"
        if ! (cd "$fetched" && apt-get download -qq prometheus) >&2 2>/dev/null; then
            [[ "$(id -u)" == 0 ]] || die "promtool is missing and could not be fetched. Refresh the package lists and try again:
    sudo apt-get update"
            apt-get update -qq >&2
            (cd "$fetched" && apt-get download -qq prometheus) >&2
        fi
        mkdir -p "$TOOLS"
        dpkg-deb --fsys-tarfile "$fetched"/prometheus_*.deb | tar -x -C "$TOOLS" --strip-components=3 ./usr/bin/promtool
        rm -r "$fetched"
    fi
    echo "$TOOLS/promtool"
}

setup_build() {
    system_packages no
    rust_toolchain
}

setup_tests() {
    system_packages yes
    rust_toolchain
    python_environment
    promtool_binary >/dev/null
}

# --- run --------------------------------------------------------------------------------------------------------------

# A key that nobody can guess, readable by its owner only. An existing one is kept.
make_key() {
    local file="$1"
    [[ ! -s "$file" ]] || return 0
    (umask 077 && printf 'tk-%s\n' "$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n')" >"$file")
}

# The address that the gateway will listen on: host:port.
listen_address() {
    local address="$LISTEN"
    [[ -n "$address" ]] || address="$(sed -n 's/^listen *= *"\([^"]*\)".*/\1/p' "$CONFIG" | head -n1)"
    echo "${address:-127.0.0.1:4000}"
}

# Where a client on this machine reaches it: an address that means "every interface" is reached by the loopback.
client_address() { sed 's/^0\.0\.0\.0:/127.0.0.1:/; s/^\[::\]:/[::1]:/' <<<"$1"; }

port_is_taken() {
    local host="${1%:*}" port="${1##*:}"
    host="${host#[}"
    (exec 3<>"/dev/tcp/${host%]}/$port") 2>/dev/null
}

print_how_to_call() {
    local base="http://$1/v1" key="$PWD/data/default.key"
    cat <<TEXT

Tollkeeper is starting on http://$1 with $CONFIG. Try it from another shell (the key is in data/default.key):

    curl -N $base/chat/completions \\
      -H "Authorization: Bearer \$(cat '$key')" -H 'Content-Type: application/json' \\
      -d '{"model": "local/fast", "stream": true, "messages": [{"role": "user", "content": "What is the capital of France?"}]}'

or point any OpenAI client at it:

    export OPENAI_BASE_URL=$base
    export OPENAI_API_KEY="\$(cat '$key')"

TEXT
}

run() {
    setup_build
    [[ -f "$CONFIG" ]] || die "there is no configuration file $CONFIG"
    say "building (the first time takes a while: llama.cpp is compiled too)"
    cargo build --release "${locked[@]}" -p tollkeeper-gateway ${FEATURES:+--features "$FEATURES"}
    mkdir -p data
    make_key data/default.key
    make_key data/admin.key
    local binary="${CARGO_TARGET_DIR:-target}/release/tollkeeper" address problems
    problems="$("$binary" check -c "$CONFIG" 2>&1)" || die "$problems" # warnings are logged by serve
    address="$(client_address "$(listen_address)")"
    ! port_is_taken "$address" || die "$address is taken by another program (a gateway that still runs?). Stop it, or choose another address:
    make run LISTEN=127.0.0.1:4001"
    print_how_to_call "$address"
    exec "$binary" serve -c "$CONFIG" ${LISTEN:+--listen "$LISTEN"}
}

# --- tests and checks -------------------------------------------------------------------------------------------------

# The whole suite. The tests drive the real binary, so it is built first, in the same profile: llama.cpp is compiled once.
tests() {
    setup_tests
    dashboards
    say "building the binary that the tests drive"
    cargo build "${locked[@]}" --workspace --bin tollkeeper
    say "running the tests"
    cargo test "${locked[@]}" --workspace --no-fail-fast
}

# What takes minutes: the property tests with forty times their cases, the trainer's tests, and the tests marked #[ignore].
tests_long() {
    setup_tests
    PROPTEST_CASES=10000 cargo test "${locked[@]}" -p tollkeeper-protocol -p tollkeeper-config -p tollkeeper-router -p tollkeeper-policies
    cargo test --release "${locked[@]}" -p tollkeeper-models --features train
    cargo build "${locked[@]}" --workspace --bin tollkeeper
    cargo test "${locked[@]}" -p tollkeeper-tests -- --ignored
    chat_templates
    cargo test "${locked[@]}" -p tollkeeper-inference -- --ignored
}

# Real chat templates, from the sources of llama.cpp's Python package. They are others' work: fetched, not kept.
chat_templates() {
    local folder="target/chat-templates" fetched
    [[ ! -d "$folder" ]] || return 0
    say "fetching chat templates into $folder"
    fetched="$(mktemp -d)"
    "$VENV/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
        --dest "$fetched" "llama-cpp-python==$CHAT_TEMPLATES_VERSION" </dev/null
    tar -xzf "$fetched"/llama_cpp_python-*.tar.gz -C "$fetched" --strip-components=4 --wildcards '*/vendor/llama.cpp/models/templates/*'
    mkdir -p target
    mv "$fetched/templates" "$folder"
    rm -r "$fetched"
}

# Prometheus' own tool on the alert rules, on their unit tests, and on every query of the Grafana dashboards.
dashboards() {
    say "checking the dashboards"
    local promtool queries
    promtool="$(realpath "$(promtool_binary)")"
    queries="$(mktemp)"
    python3 scripts/dashboard_rules.py dashboards/grafana/*.json >"$queries"
    "$promtool" check rules "$queries"
    rm "$queries"
    "$promtool" check config dashboards/prometheus/prometheus.yml
    (cd dashboards/prometheus && "$promtool" test rules alerts.test.yml)
}

format() { cargo fmt --all --check; }

# The trainer of the shipped model is behind a feature, and on its own, so that its dependencies do not change what the gateway is built of.
clippy() {
    cargo clippy "${locked[@]}" --workspace --all-targets -- -D warnings
    cargo clippy "${locked[@]}" -p tollkeeper-models --all-targets --features train -- -D warnings
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc "${locked[@]}" --workspace --no-deps; }

# Licences, banned and duplicate crates, sources. Advisories need a database from the network: `cargo deny check advisories`.
deny() {
    if ! have cargo-deny && [[ ! -x "$TOOLS/bin/cargo-deny" ]]; then
        say "building cargo-deny $CARGO_DENY_VERSION into $TOOLS"
        cargo install --quiet --locked --debug --root "$TOOLS" --target-dir "$TOOLS/build" --version "$CARGO_DENY_VERSION" cargo-deny
        rm -rf "$TOOLS/build"
    fi
    PATH="$PATH:$PWD/$TOOLS/bin" cargo deny --workspace check --hide-inclusion-graph bans licenses sources
}

lint() {
    setup_build
    format
    clippy
    docs
    deny
}

# Builds the gateway and the load program in release, and runs the load; its arguments come after `bench` (try --help).
bench() {
    setup_build
    cargo build --release "${locked[@]}" --workspace --bin tollkeeper --bin overhead
    "${CARGO_TARGET_DIR:-target}/release/overhead" "$@"
}

# Runs every fuzz target for so many seconds (60). libFuzzer without a sanitizer, so that the stable toolchain is enough; what it
# finds is kept, and the input that broke a target lies in target/fuzz/found.
fuzz() {
    local seconds="${1:-60}" host out target name failed=0
    host="$(rustc -vV | sed -n 's/^host: //p')"
    out="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
    local coverage="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
    coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
    # With --target the flags are for what is fuzzed, not for build scripts.
    CARGO_TARGET_DIR="$out" RUSTFLAGS="$coverage" cargo build --release "${locked[@]}" --manifest-path fuzz/Cargo.toml --target "$host"
    for target in fuzz/fuzz_targets/*.rs; do
        name="$(basename "$target" .rs)"
        say "fuzzing $name for $seconds s"
        mkdir -p "$out/corpus/$name" "$out/found"
        "$out/$host/release/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
            -artifact_prefix="$out/found/$name-" "$out/corpus/$name" || failed=1
    done
    ((failed == 0)) || die "a fuzz target broke: see $out/found"
}

help() {
    cat <<'TEXT'
make run        install what is missing, build, start on 127.0.0.1:4000 with config/tollkeeper.toml
                (LISTEN=host:port, CONFIG=file and FEATURES=cuda|vulkan change that)
make test       the whole test suite, the OpenAI Python client and the alert rules included
make test-long  the tests that take minutes
make lint       formatting, clippy, documentation, licences and banned crates
make bench      the benchmarks
make fuzz       the fuzz targets, each for a minute (scripts/dev.sh fuzz SECONDS)
make setup      install what building and testing need, and nothing else
TEXT
}

case "${1:-help}" in
    run) run ;;
    setup) setup_tests ;;
    test) tests ;;
    test-long) tests_long ;;
    bench) bench "${@:2}" ;;
    fuzz) fuzz "${@:2}" ;;
    dashboards | format | clippy | docs | deny | lint | help) "$1" ;;
    *) die "no such command: $1 (scripts/dev.sh help lists them)" ;;
esac
