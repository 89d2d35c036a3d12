#!/bin/sh
# Installs the programs that measurements and attacks use beside Python packages (Debian, Ubuntu):
#   wrk             load for `make bench`, `make bench-check`, `make bench-compare`
#   nginx-light     a peer in `make bench-compare`, which starts its own; where the package starts
#                   one too, on port 80: systemctl disable --now nginx
#   nghttp2-client  h2load, the load of `make attack`
#   slowhttptest    slow heads, bodies and readers of `make attack`
# openssl, for `make tls`, is there anyhow. Nothing here is needed to serve or to run the tests.
set -eu
packages="wrk nginx-light nghttp2-client slowhttptest"
if [ "$(id -u)" -ne 0 ]; then
    echo "needs root: sudo $0" >&2
    exit 1
fi
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
