#!/bin/sh
# Fetches the bundles that /ui and /apidocs show the contract with, by npm, at
# the versions below, and packs them as they are embedded. Run it in this
# directory after changing a version; the result is the same everywhere.
set -eu

swagger_ui=5.35.0
redoc=2.5.4

here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "swagger-ui-dist@$swagger_ui" "redoc@$redoc"
mkdir swagger-ui redoc
tar -xzf "swagger-ui-dist-$swagger_ui.tgz" -C swagger-ui
tar -xzf "redoc-$redoc.tgz" -C redoc

pack() { gzip -9n <"$1" >"$here/assets/$(basename "$1").gz"; }
mkdir -p "$here/assets"
pack swagger-ui/package/swagger-ui-bundle.js
pack swagger-ui/package/swagger-ui.css
# ReDoc shows a logo that it fetches from its makers; here nothing is fetched
# from anywhere, so the address goes and ReDoc leaves the logo out.
logo='https://cdn.redoc.ly/redoc/logo-mini.svg'
grep -q "$logo" redoc/package/bundles/redoc.standalone.js
sed "s|$logo|data:,|" redoc/package/bundles/redoc.standalone.js >redoc.standalone.js
pack redoc.standalone.js

{
	cat <<EOF
The files in assets/ are other people's work, packed but otherwise unchanged,
except that the address of a logo is taken out of redoc.standalone.js.

swagger-ui-bundle.js and swagger-ui.css
  Swagger UI $swagger_ui, Apache License 2.0
redoc.standalone.js
  ReDoc $redoc, MIT License

What they in turn are made of, and the licences in full:

EOF
	for file in swagger-ui/package/NOTICE swagger-ui/package/LICENSE \
		swagger-ui/package/swagger-ui-bundle.js.LICENSE.txt \
		redoc/package/LICENSE redoc/package/bundles/redoc.standalone.js.LICENSE.txt; do
		printf '%s\n\n' "==== $file"
		cat "$file"
		printf '\n'
	done
} >"$here/LICENSES"
