# Sourced by scripts/shammah and scripts/test: a virtual environment of the project's own.
#
#   environment EXTRA     makes $root/.venv with the packages of constraints.txt ("" or "dev")
#
# Once made it costs two file comparisons. Everything it says goes to stderr.

environment() {
    local extra=$1
    local stamp="$root/.venv/.ready${extra:+-$extra}"
    python="$root/.venv/bin/python"
    if [[ -x $python && $stamp -nt $root/constraints.txt && $stamp -nt $root/pyproject.toml ]]; then
        return
    fi
    exec 9>"$root/.venv.lock"  # two first starts at once: the second waits
    if command -v flock >/dev/null; then flock 9; fi
    if [[ ! ($stamp -nt $root/constraints.txt && $stamp -nt $root/pyproject.toml) ]]; then
        install_packages "$extra"
        touch "$root/.venv/.ready" "$stamp"
    fi
    exec 9>&-
}

install_packages() {
    local extra=$1 log="$root/.venv/setup.log" started=$SECONDS
    if [[ ! -x $python ]] || ! "$python" -c "" 2>/dev/null; then
        local base
        base=$(find_python)
        rm -rf "$root/.venv"
        "$base" -m venv "$root/.venv" || fail "$base cannot make a virtual environment (on Debian: apt install python3-venv)."
    fi
    "$python" -m pip install --disable-pip-version-check --no-input \
        -c "$root/constraints.txt" -e "$root${extra:+[$extra]}" >"$log" 2>&1 &
    local pip=$!
    trap 'kill $pip 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pip" 2>/dev/null; do
        if [[ -t 2 ]]; then
            printf '\r\033[KSetting up for the first time: %ss, %s' "$((SECONDS - started))" "$(current_package "$log")" >&2
        fi
        sleep 0.5
    done
    trap - INT TERM
    [[ -t 2 ]] && printf '\r\033[K' >&2
    if ! wait "$pip"; then
        tail -n 15 "$log" >&2
        fail "Setting up failed; the whole log is in $log. Run the command again to try once more."
    fi
    printf 'Set up in %s s.\n' "$((SECONDS - started))" >&2
}

current_package() {
    local line
    line=$(grep -aoE '^(Collecting|Downloading|Installing collected packages|Building)[^(]*' "$1" 2>/dev/null | tail -n 1)
    printf '%.50s' "${line:-starting pip}"
}

find_python() {
    local name
    for name in "${SHAMMAH_PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        if [[ -n $name ]] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is needed and was not found. Install it, or name it in SHAMMAH_PYTHON."
}

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}
