#!/bin/sh
# sh start.sh NGINX --listen ADDRESS --upstream ADDRESS --buffer SIZE
#
# nginx takes no addresses on its command line: nginx.conf is written out with them, then nginx takes this place.
set -eu
nginx=$1 listen=$3 upstream=$5 buffer=$7
home=$(pwd)/target/xtask/bench/nginx
mkdir -p "$home"
sed -e "s/LISTEN/$listen/; s/UPSTREAM/$upstream/; s/BUFFER/$buffer/" "$(dirname "$0")/nginx.conf" >"$home/nginx.conf"
exec "$nginx" -e stderr -p "$home" -c nginx.conf
