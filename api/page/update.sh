#!/bin/sh
# Fetches the page's library, by npm, at the version below. Run it in this directory
# after changing the version and the digest; LICENSES and docs/decisions/page.md name it.
set -eu

htm=3.1.1
digest=72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7

here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "htm@$htm"
tar -xzf "htm-$htm.tgz"
echo "$digest  package/preact/standalone.module.js" | sha256sum -c --quiet
cp package/preact/standalone.module.js "$here/src/lib/preact.js"
