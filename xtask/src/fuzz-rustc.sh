#!/bin/sh
# cargo calls this with the compiler and its arguments, for our own crates only (see fuzz.rs). They
# get what cargo-fuzz gives LLVM, but for the address sanitizer, which needs a nightly toolchain; and
# every check of a debug build, soon compiled.
rustc=$1
shift
for argument in "$@"; do
    case $argument in
    # These run while building, where no fuzzer counts.
    build_script_* | proc-macro) exec "$rustc" "$@" ;;
    esac
done
exec "$rustc" "$@" \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Copt-level=1 \
    -Cdebug-assertions=on \
    -Coverflow-checks=on \
    -Cdebuginfo=line-tables-only \
    -Cstrip=none
