#!/bin/bash
# What the README shows is what the command prints: runs each one-line `$ ./fabricast ...` of its console blocks.
#
#   readme_test.sh BINARY README

set -uo pipefail
fabricast="$1"
readme="$2"
checked=0
command=""
expected=""
while IFS= read -r line; do
  if [[ -z "${command}" && "${line}" == '$ ./fabricast '* && "${line}" != *\\ ]]; then
    command="${line#'$ ./fabricast '}"
    expected=""
  elif [[ -n "${command}" && "${line}" == '```' ]]; then
    # shellcheck disable=SC2086
    printed="$("${fabricast}" ${command} </dev/null)" || exit 1
    if ! diff -u <(printf '%s' "${expected%$'\n'}") <(printf '%s' "${printed}"); then
      echo "FAIL: the README shows another output of: fabricast ${command}"
      exit 1
    fi
    checked=$((checked + 1))
    command=""
  elif [[ -n "${command}" ]]; then
    expected+="${line}"$'\n'
  fi
done <"${readme}"
echo "${checked} commands of the README print what it shows"
[[ ${checked} -ge 2 ]]
