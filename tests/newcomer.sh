#!/usr/bin/env bash
# A newcomer's path: clone into an empty folder, type the README's first command (with little work), look at what it left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$(git rev-parse --show-toplevel)" "$folder/fastdss"
cd "$folder/fastdss"
make demo DEMO_ARGS="--quick --arms none,dss-k2 --settings guard"
grep -q "<html" demo_report.html
grep -q '"dss-k2/guard"' demo_report.json
if grep -Eq '(src|href)="https?:' demo_report.html; then echo "the page needs a network"; exit 1; fi
echo "newcomer's path: ok"
