# Sourced: makes the uv of a virtual environment see what pip is told on this machine, since uv does not read pip's configuration.
# Expects VENV, the folder of the virtual environment.

pip_setting() {  # pip_setting NAME: the value of a global pip setting (the environment wins), or nothing
    local variable="PIP_$(tr 'a-z-' 'A-Z_' <<<"$1")"
    if [ -n "${!variable:-}" ]; then
        printf '%s\n' "${!variable}"
    else
        "$VENV/bin/python" -m pip config get "global.$1" 2>/dev/null || true
    fi
}

uv() { "$VENV/bin/uv" --quiet "$@"; }

export_pip_settings() {
    local links index certificate
    links="$(pip_setting find-links)"
    index="$(pip_setting index-url)"
    certificate="$(pip_setting cert)"
    [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(xargs <<<"$links" | tr ' ' ',')}"
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
}

torch_backend() {  # torch_backend TORCH_PIN: the option that lets uv find the CPU build, where a plain look-up does not
    if ! uv pip compile --python "$VENV/bin/python" --no-deps - <<<"$1" >/dev/null 2>&1; then
        echo "--torch-backend=cpu"
    fi
}
