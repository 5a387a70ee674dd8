# For the command's tests, to be sourced: expects ${fabricast}, the binary's absolute path, and goes to a folder of its own.
# The test ends with `all_met`.

cd "${TEST_TMPDIR:-/tmp}" || exit 1
failures=0

fail() {
  echo "FAIL: $*"
  failures=$((failures + 1))
}

# expect STATUS TEXT COMMAND...: TEXT (an extended regular expression) is in what the command prints.
expect() {
  local want="$1" text="$2"
  shift 2
  local output status
  output="$("${fabricast}" "$@" 2>&1)"
  status=$?
  [[ ${status} -eq ${want} ]] || fail "fabricast $*: exit status ${status}, not ${want}: ${output}"
  grep -qE -- "${text}" <<<"${output}" || fail "fabricast $*: no '${text}' in: ${output}"
}

all_met() {
  echo "${failures} failed"
  [[ ${failures} -eq 0 ]]
}
