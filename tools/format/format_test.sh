#!/bin/bash
# Fails if a file of the checkout is not formatted, or if the check would not notice.

set -euo pipefail
checkout="$(dirname "$(readlink -f WORKSPACE)")"

"${checkout}/tools/format/format" check

# On a copy with one bad file of each kind.
copy="${TEST_TMPDIR}/checkout"
mkdir -p "${copy}"
cp "${checkout}/.clang-format" "${copy}"
ln -s "${checkout}/.cache" "${copy}/.cache"
expect_failure() {
  if FORMAT_ROOT="${copy}" "${checkout}/tools/format/format" check >/dev/null 2>&1; then
    echo "the check does not notice $1" >&2
    exit 1
  fi
}
FORMAT_ROOT="${copy}" "${checkout}/tools/format/format" check
echo "int  x;" >"${copy}/bad.cc"
expect_failure "a badly formatted C++ file"
rm "${copy}/bad.cc"
echo 'cc_library(name="x")' >"${copy}/BUILD"
expect_failure "a badly formatted BUILD file"
