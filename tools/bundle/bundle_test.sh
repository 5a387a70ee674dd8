#!/bin/bash
# Bundles a small program and the real command, and runs them without what they were built with.
#
#   bundle_test.sh BUNDLE EXAMPLE LIBGREETING FABRICAST

set -uo pipefail
bundle="$(realpath "$1")" example="$(realpath "$2")" library="$(realpath "$3")" fabricast="$(realpath "$4")"
failures=0

# expect STATUS REGEX COMMAND...
expect() {
  local wanted="$1" regex="$2" output status
  shift 2
  output="$("$@" 2>&1)"
  status=$?
  if [[ "${status}" != "${wanted}" ]] || ! grep -qE -- "${regex}" <<<"${output}"; then
    echo "FAILED: $*: wanted exit status ${wanted} and '${regex}', got ${status} and:"
    echo "${output}"
    failures=$((failures + 1))
  fi
}

# As another system would: another folder, no environment, and a library path that misleads.
mkdir -p "${TEST_TMPDIR}/misleading"
touch "${TEST_TMPDIR}/misleading/libgreeting.so" "${TEST_TMPDIR}/misleading/libstdc++.so.6"
elsewhere() {
  (cd / && env -i LD_LIBRARY_PATH="${TEST_TMPDIR}/misleading" "$@")
}

# Alone in a folder, the program does not find its library.
mkdir "${TEST_TMPDIR}/alone"
cp "${example}" "${TEST_TMPDIR}/alone/example"
alone="${TEST_TMPDIR}/alone/example"
out="${TEST_TMPDIR}/out"
expect 1 "needs \S*libgreeting.so, which this system lacks" "${bundle}" "${out}" "${alone}"
expect 1 "missing is not there" "${bundle}" "${out}" "${TEST_TMPDIR}/missing"
expect 1 "bundle_test\S* is no ELF file" "${bundle}" "${out}" "$0"
expect 2 "OUTPUT" "${bundle}" --what

export LD_LIBRARY_PATH
LD_LIBRARY_PATH="$(dirname "${library}")"
expect 1 "needs glibc 2\.[0-9]+, which is newer than 2\.2;" "${bundle}" --glibc=2.2 "${out}" "${alone}"
expect 0 "needs glibc 2\.[0-9]+ or newer" "${bundle}" "${out}" "${alone}"
expect 1 "is there already" "${bundle}" "${out}" "${alone}"
unset LD_LIBRARY_PATH
expect 0 "hello from the bundle" elsewhere "${out}/bin/example"
mv "${out}" "${out}_moved"
expect 0 "hello from the bundle" elsewhere "${out}_moved/bin/example"
find "${out}_moved/lib" -name 'libgreeting.so' -delete
expect 127 "libgreeting.so" elsewhere "${out}_moved/bin/example"

archive="${TEST_TMPDIR}/archives/fabricast.tar.gz"
expect 0 "[0-9.]+ MB" "${bundle}" "${archive}" "${fabricast}"
tar --extract --file="${archive}" --directory="${TEST_TMPDIR}"
unpacked="${TEST_TMPDIR}/fabricast"
expect 0 "^[0-9]+\.[0-9]+" elsewhere "${unpacked}/bin/fabricast" --version
expect 0 "llama-3.1-405b-instruct-awq-int4" elsewhere "${unpacked}/bin/fabricast" models
expect 0 "tokens back" elsewhere "${unpacked}/bin/fabricast" simulate trinity_200g \
  --model llama-3.1-405b-instruct-awq-int4 --workload closed:concurrency=1,requests=1,input=100,output=4
for found in "${unpacked}/lib/"*; do
  case "$(basename "${found}")" in
    libc.so.* | libm.so.* | ld-linux*)
      echo "FAILED: ${found} belongs to the system"
      failures=$((failures + 1))
      ;;
  esac
done
[[ -e "${unpacked}/lib/libsimgrid.so.3.32" ]] || expect 0 "libsimgrid" ls "${unpacked}/lib"

[[ "${failures}" == 0 ]]
