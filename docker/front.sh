#!/bin/sh
# Checks the front's settings, writes its nginx.conf and becomes nginx. Further arguments go to nginx (`front.sh -t`).
# Needs sh, envsubst (gettext) and nginx. Settings, all optional, come from the environment:
#
#   TRIVID_TOKEN             the bearer token that clients must send: at least 16 of A-Z a-z 0-9 . _ ~ + / = -
#   TRIVID_BIND              where clients reach the front; without a token it must be this machine only
#   TRIVID_ALLOW_ANONYMOUS   1: serve everybody, even without a token
#   TRIVID_MAX_MEDIA_MB      largest medium; in JSON it may take a third more (base64)
#   TRIVID_MAX_STREAM_MB     bound of all media of one gRPC stream together
#   TRIVID_TIMEOUT_S         longest silence of the server, and of a client that listens to a stream
#   TRIVID_TLS_DIR           holds tls.crt and tls.key, or neither
#   TRIVID_LISTEN, TRIVID_FRONT_HTTP_PORT, TRIVID_FRONT_GRPC_PORT     where nginx listens
#   TRIVID_UPSTREAM_HTTP, TRIVID_UPSTREAM_GRPC     where Triton listens
#   TRIVID_FRONT_DIR         the one directory that nginx writes to
#   TRIVID_ACCESS_LOG        a file, or off
set -eu

fail() {
    echo "front: $1" >&2
    exit 64
}

number() { # name and value: digits only, no octal, no zero
    case "$2" in
        '' | 0* | *[!0-9]*) fail "$1=$2 is not a positive whole number" ;;
    esac
}

: "${TRIVID_TOKEN:=}" "${TRIVID_ALLOW_ANONYMOUS:=0}" "${TRIVID_LISTEN:=127.0.0.1}"
: "${TRIVID_BIND:=$TRIVID_LISTEN}" "${TRIVID_FRONT_HTTP_PORT:=8080}" "${TRIVID_FRONT_GRPC_PORT:=8081}"
: "${TRIVID_UPSTREAM_HTTP:=127.0.0.1:8000}" "${TRIVID_UPSTREAM_GRPC:=127.0.0.1:8001}"
: "${TRIVID_MAX_MEDIA_MB:=64}" "${TRIVID_MAX_STREAM_MB:=1024}" "${TRIVID_TIMEOUT_S:=600}"
: "${TRIVID_TLS_DIR:=/tls}" "${TRIVID_FRONT_DIR:=/tmp/front}" "${TRIVID_ACCESS_LOG:=/dev/stdout}"
# nginx takes no format together with its own `off`.
[ "$TRIVID_ACCESS_LOG" != off ] || TRIVID_ACCESS_LOG=/dev/null

number TRIVID_FRONT_HTTP_PORT "$TRIVID_FRONT_HTTP_PORT"
number TRIVID_FRONT_GRPC_PORT "$TRIVID_FRONT_GRPC_PORT"
number TRIVID_MAX_MEDIA_MB "$TRIVID_MAX_MEDIA_MB"
number TRIVID_MAX_STREAM_MB "$TRIVID_MAX_STREAM_MB"
number TRIVID_TIMEOUT_S "$TRIVID_TIMEOUT_S"
TRIVID_BODY_MB=$((TRIVID_MAX_MEDIA_MB * 4 / 3 + 2))

TRIVID_ANONYMOUS=0
if [ -z "$TRIVID_TOKEN" ]; then
    TRIVID_ANONYMOUS=1
    case "$TRIVID_BIND:$TRIVID_ALLOW_ANONYMOUS" in
        127.*:* | ::1:* | localhost:* | *:1) ;;
        *) fail "no TRIVID_TOKEN, and $TRIVID_BIND is open to others: set a token, or TRIVID_ALLOW_ANONYMOUS=1" ;;
    esac
else
    case "$TRIVID_TOKEN" in
        # The value stays out of the message: not everybody who reads the logs may know the token.
        *[!A-Za-z0-9._~+/=-]*) fail "TRIVID_TOKEN has a character other than A-Z a-z 0-9 . _ ~ + / = -" ;;
    esac
    [ "${#TRIVID_TOKEN}" -ge 16 ] || fail "TRIVID_TOKEN is shorter than 16 characters"
fi
# Of the allowed characters, these two are special in a regex. A character class needs no backslash.
TRIVID_TOKEN_REGEX=$(printf '%s' "$TRIVID_TOKEN" | sed 's/[.+]/[&]/g')

TRIVID_SSL='' TRIVID_TLS_LINES=''
crt=$TRIVID_TLS_DIR/tls.crt key=$TRIVID_TLS_DIR/tls.key
if [ -e "$crt" ] || [ -e "$key" ]; then
    # With only one of the two, nginx would serve plain text where TLS was meant.
    [ -r "$crt" ] || fail "$crt is missing or not readable for user $(id -u)"
    [ -r "$key" ] || fail "$key is missing or not readable for user $(id -u)"
    TRIVID_SSL=ssl
    TRIVID_TLS_LINES="ssl_certificate $crt; ssl_certificate_key $key; ssl_protocols TLSv1.2 TLSv1.3;"
fi

export TRIVID_ACCESS_LOG TRIVID_ANONYMOUS TRIVID_TOKEN_REGEX TRIVID_BODY_MB TRIVID_MAX_MEDIA_MB
export TRIVID_MAX_STREAM_MB TRIVID_TIMEOUT_S TRIVID_TLS_LINES TRIVID_SSL TRIVID_LISTEN
export TRIVID_FRONT_HTTP_PORT TRIVID_FRONT_GRPC_PORT TRIVID_UPSTREAM_HTTP TRIVID_UPSTREAM_GRPC

mkdir -p "$TRIVID_FRONT_DIR"
umask 077 # the written file holds the token
template=$(dirname "$0")/nginx.conf
# envsubst replaces only the names in its argument: nginx's own $variables must stay.
names=$(grep -o '\${TRIVID_[A-Z_]*}' "$template" | sort -u | tr '\n' ' ')
envsubst "$names" <"$template" >"$TRIVID_FRONT_DIR/nginx.conf"

unset TRIVID_TOKEN TRIVID_TOKEN_REGEX
exec nginx -e stderr -p "$TRIVID_FRONT_DIR" -c "$TRIVID_FRONT_DIR/nginx.conf" "$@"
