#!/bin/sh
# Fetches the manual's library, by npm, at the version below. Run it in this directory
# after changing the version and the digest; LICENSES and docs/decisions/manual.md name it.
set -eu

minisearch=7.2.0
digest=0393b3ba253b809d5e55707c7b0875ef9b518a296a006c6739b28876e154edb3

here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "minisearch@$minisearch"
tar -xzf "minisearch-$minisearch.tgz"
echo "$digest  package/dist/es/index.js" | sha256sum -c --quiet
cp package/dist/es/index.js "$here/src/lib/minisearch.js"
