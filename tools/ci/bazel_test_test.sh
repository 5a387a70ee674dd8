#!/bin/bash
# Checks the last line and the exit status of bazel_test on made-up build event streams.

set -u
export BAZEL="tools/ci/testdata/fake_bazel"
failures=0

# expect NAME EXIT_STATUS LAST_LINE: runs bazel_test with $EVENTS and $STATUS.
expect() {
  local output status
  output="$(python3 tools/ci/bazel_test)"
  status=$?
  if [[ "${status}" != "$2" || "$(tail -n 1 <<<"${output}")" != "$3" ]]; then
    echo "$1: expected exit status $2 and '$3', got ${status} and:"
    echo "${output}"
    failures=$((failures + 1))
  fi
}

configured() {
  printf '{"id":{"targetConfigured":{"label":"%s"}},"configured":{"targetKind":"cc_test rule"}}\n' "$1"
}
result() {  # LABEL STATUS ATTEMPT XML
  printf '{"id":{"testResult":{"label":"%s","run":1,"shard":1,"attempt":%s}},' "$1" "$3"
  printf '"testResult":{"status":"%s","testActionOutput":[{"name":"test.xml","uri":"file://%s"}]}}\n' "$2" "$4"
}
completed() {
  printf '{"id":{"targetCompleted":{"label":"%s"}},%s}\n' "$1" "$2"
}

good="${TEST_TMPDIR}/good.xml"
cat >"${good}" <<'XML'
<testsuites><testsuite>
  <testcase name="a" status="run"/><testcase name="b" status="run"/>
  <testcase name="c" status="notrun"/><testcase name="d" status="run"><skipped/></testcase>
</testsuite></testsuites>
XML
bad="${TEST_TMPDIR}/bad.xml"
cat >"${bad}" <<'XML'
<testsuites><testsuite>
  <testcase name="a" status="run"/><testcase name="b" status="run"><failure message="1 is not 2"/></testcase>
</testsuite></testsuites>
XML

export STATUS=0
EVENTS="$(configured //:x; completed //:x '"completed":{"success":true}'; result //:x PASSED 1 "${good}")" \
  expect "counts cases" 0 "2 passed, 0 failed, 2 skipped"
EVENTS="$(configured //:x; result //:x PASSED 1 /none)" expect "counts a target" 0 "1 passed, 0 failed"
EVENTS="$(configured //:x; result //:x PASSED 1 /none; configured //:y; completed //:y '"aborted":{"reason":"SKIPPED"}')" \
  expect "counts a target that needs another machine" 0 "1 passed, 0 failed, 1 skipped"
EVENTS="$(configured //:x; result //:x FAILED 1 "${bad}"; result //:x PASSED 2 /none)" \
  expect "counts the last attempt" 0 "1 passed, 0 failed"
EVENTS="" expect "takes no tests for an error" 4 "0 passed, 1 failed"

export STATUS=3
EVENTS="$(configured //:x; result //:x FAILED 1 "${bad}")" expect "keeps Bazel's status" 3 "1 passed, 1 failed"
EVENTS="$(configured //:x; result //:x TIMEOUT 1 /none)" expect "counts a timeout" 3 "0 passed, 1 failed"
EVENTS="$(configured //:x; result //:x FAILED 1 "${good}")" \
  expect "counts a death after the last case" 3 "2 passed, 1 failed, 2 skipped"

export STATUS=1
EVENTS="$(configured //:x; completed //:x '"completed":{}')" expect "counts what does not build" 1 "0 passed, 1 failed"
EVENTS="" expect "fails with Bazel" 1 "0 passed, 1 failed"
EVENTS='{"id": {"targ' expect "bears a cut off line" 1 "0 passed, 1 failed"

exit $((failures > 0))
