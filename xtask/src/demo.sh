# What `cargo xtask demo` runs in the guest: demo.sh v1|v2|hybrid with-guard|without-guard
#
# It checks everything that it shows. If something differs, it says so and exits with 1.

set -u
layout=$1 guard=$2

case $layout in
v2) top=/sys/fs/cgroup file=cgroup.freeze freeze=1 thaw=0 ;;
*) top=/sys/fs/cgroup/freezer file=freezer.state freeze=FROZEN thaw=THAWED ;;
esac
pod=$top/pod
app=$pod/app
counters=/tmp/counters
refused='Device or resource busy'
# CRIU hangs if it writes nothing to its log for this long, s.
hang=8
cd /tmp || exit 1

number=0
step() {
    number=$((number + 1))
    printf '\n== %d. %s\n' "$number" "$1"
}

fail() {
    printf '\nNOT AS PROMISED: %s\n' "$1"
    if [ -n "${log:-}" ] && [ -e "$log" ]; then
        printf 'The end of %s:\n' "$log"
        tail -n 15 "$log"
    fi
    exit 1
}

# Reads the counters. Each process of the workload writes its counter to a file of its own.
read_counters() {
    local path value
    values=()
    for path in "$counters"/[0-9]*; do
        # The process may be writing the file right now. Then the value is 0.
        value=$(tr -cd 0-9 <"$path")
        values+=($((10#0$value)))
    done
}

show_counters() {
    read_counters
    echo "counters: ${values[*]}"
}

# Tests whether each counter has grown: `grown AT_LEAST EARLIER...`
grown() {
    local at_least=$1 index=0 earlier
    shift
    [ "$#" -gt 0 ] && [ "$#" -eq "${#values[@]}" ] || return 1
    for earlier; do
        [ "${values[index]}" -ge $((earlier + at_least)) ] || return 1
        index=$((index + 1))
    done
}

# The intruder is a program of its own, so that freezer-guard reports it by its own name. It waits
# until CRIU has frozen the cgroup and thawed it again. Then it writes. Its arguments come in
# threes: the text, the file, the purpose.
write_intruder() {
    cat >/tmp/intruder <<'END'
#!/usr/bin/bash
app=$1 file=$2 thaw=$3 said=/tmp/intruder.said
shift 3
wait_until() {
    until [ "$(<"$app/$file")" $1 "$thaw" ]; do sleep 0.02; done
}
wait_until !=
wait_until =
echo '  [intruder] CRIU has thawed the cgroup. Now!'
while [ $# -gt 0 ]; do
    echo "  [intruder] \$ echo $1 > $2  # $3"
    if { echo "$1" >"$2"; } 2>/tmp/intruder.error; then
        outcome='The kernel allows it.'
    else
        outcome=$(sed 's/.*: //' /tmp/intruder.error)
    fi
    echo "  [intruder] $outcome"
    echo "$outcome" >>"$said"
    shift 3
done
echo done >>"$said"
END
    chmod +x /tmp/intruder
}

start_intruder() {
    write_intruder
    : >/tmp/intruder.said
    /tmp/intruder "$app" "$file" "$thaw" "$@" &
    intruder=$!
}

# slow-criu is CRIU under strace. After each write of CRIU to the freezer strace stops it for 1.5 s.
write_slow_criu() {
    mkdir -p /tmp/bin
    cat >/tmp/bin/slow-criu <<END
#!/usr/bin/bash
exec strace -o /dev/null -P $app/$file -e inject=write:delay_exit=1500000 criu "\$@"
END
    chmod +x /tmp/bin/slow-criu
    PATH=/tmp/bin:$PATH
}

show_command() {
    local prefix='$ ' part
    for part; do
        echo "$prefix$part"
        prefix='      '
    done
}

echo
echo "Linux $(uname -r), cgroup $layout, CRIU $(criu --version | sed -n "s/^Version: //p")"

step 'A workload runs in a cgroup: three processes, and each one counts up.'
mkdir -p "$pod" "$app" "$counters" /tmp/image || fail "the cgroup $app could not be made"
show_command "guest-tool workload counters --cgroup $app --processes 2"
root=$(guest-tool workload "$counters" --cgroup "$app" --processes 2) ||
    fail 'the workload did not start'
sleep 1
show_counters
first=("${values[@]}")
sleep 1
show_counters
grown 1 "${first[@]}" || fail 'the counters do not grow'
echo "Its root process is pid $root."

write_slow_criu
criu_dump=(slow-criu dump -t "$root" -D image -o dump.log -v4 --freeze-cgroup "$app")
log=/tmp/image/dump.log

explain_dump() {
    echo 'CRIU freezes the cgroup, seizes the tasks, and thaws the cgroup to work in them.'
    echo "$1"
    echo '(slow-criu: strace stops CRIU for 1.5 s after each of its writes to the freezer.)'
}

if [ "$guard" = without-guard ]; then
    step 'CRIU dumps the workload. No guard protects the cgroup.'
    explain_dump 'Then an intruder freezes it: a container engine, an administrator, a suspend.'
    show_command "${criu_dump[*]}"
    start_intruder "$freeze" "$app/$file" 'freeze the cgroup'
    "${criu_dump[@]}" >/dev/null 2>&1 &
    dump=$!
    quiet=0 size=-1
    while [ -d "/proc/$dump" ] && [ "$quiet" -lt "$hang" ]; do
        sleep 1
        now=$(wc -c 2>/dev/null <"$log")
        if [ "${now:-0}" = "$size" ] && grep -q done /tmp/intruder.said; then
            quiet=$((quiet + 1))
        else
            quiet=0 size=${now:-0}
        fi
    done
    grep -q 'The kernel allows it' /tmp/intruder.said || fail "the intruder's freeze was refused"
    [ -d "/proc/$dump" ] || fail 'CRIU did not hang'

    step 'CRIU hangs.'
    echo "It has written nothing to its log for $hang s, and it has no time-out. The last line:"
    tail -n 1 "$log" | sed 's/^/  /'
    echo 'CRIU waits for its own code in a task to run, but a frozen task runs no code.'
    echo 'The workload is frozen, too:'
    show_counters
    frozen=("${values[@]}")
    sleep 1
    show_counters
    [ "${frozen[*]}" = "${values[*]}" ] || fail 'the workload still runs'

    step 'An administrator kills CRIU and thaws the cgroup.'
    kill -KILL "$dump"
    wait "$dump" 2>/dev/null
    killall -q -KILL criu
    sleep 1
    show_command "echo $thaw > $app/$file"
    echo "$thaw" >"$app/$file"
    sleep 2
    if [ -d "/proc/$root" ] && ! grep -q '^State:.*[ZX]' "/proc/$root/status"; then
        echo 'This time the workload survives. There is no checkpoint.'
    else
        echo "This kills the workload's root process, pid $root. There is no checkpoint either."
    fi
    echo
    echo 'CRIU HANGS WITHOUT A GUARD. `cargo xtask demo` shows the same dump with a guard.'
    exit 0
fi

step 'CRIU dumps the workload under freezer-guard, and an intruder interferes.'
explain_dump 'If another process freezes the cgroup then, CRIU hangs. The intruder tries it.'
show_command "freezer-guard run --cgroup $app --pid $root --freeze --timeout 2m -- \\" "${criu_dump[*]}"
start_intruder \
    "$freeze" "$app/$file" 'freeze the cgroup' "$thaw" "$app/$file" 'thaw it' \
    "$freeze" "$pod/$file" 'freeze its parent' "$thaw" "$pod/$file" 'thaw its parent'
freezer-guard run --cgroup "$app" --pid "$root" --freeze --timeout 2m -- "${criu_dump[@]}"
code=$?
[ "$code" -eq 0 ] || fail "freezer-guard run ended with $code"
# The intruder may need some more time. Or it has found no moment to write: then it waits for ever.
for _ in 1 2 3 4 5; do
    grep -q done /tmp/intruder.said && break
    sleep 1
done
kill "$intruder" 2>/dev/null
[ "$(grep -c "$refused" /tmp/intruder.said)" = 4 ] ||
    log='' fail 'not all four writes of the intruder were refused'
tail -n 1 "$log" | grep -q 'Dumping finished successfully' ||
    fail 'CRIU does not say that the dump is good'
echo 'The kernel has refused all four writes, and the dump is good:'
tail -n 1 "$log" | sed 's/^/  /'

step 'The processes are gone: they are in the image now.'
for _ in 1 2 3 4 5; do
    [ -z "$(<"$app/cgroup.procs")" ] && break
    sleep 1
done
[ -z "$(<"$app/cgroup.procs")" ] || fail "there are still processes in $app"
show_counters
dumped=("${values[@]}")
grown 0 "${first[@]}" || fail 'the counters went back'
sleep 1
read_counters
[ "${dumped[*]}" = "${values[*]}" ] || fail 'a process still counts'
show_command 'freezer-guard status'
status=$(freezer-guard status) || fail 'freezer-guard status failed'
echo "$status"
[ "$status" = 'no cgroup is guarded' ] || fail 'the guard is still there'
state=$(<"$app/$file")
[ "$state" = "$thaw" ] || fail "$app/$file says $state"

step 'CRIU restores the workload from the image.'
show_command 'criu restore -D image -o restore.log -v4 -d'
log=/tmp/image/restore.log
criu restore -D image -o restore.log -v4 -d </dev/null || fail 'the restore failed'
sleep 1
show_counters
grown 0 "${dumped[@]}" || fail 'the counters went back'
again=("${values[@]}")
sleep 1
show_counters
grown 1 "${again[@]}" || fail 'the counters do not grow'
echo 'The counters continue from where they stopped.'
echo
echo 'AS PROMISED: four refusals, a good dump, a good restore.'
