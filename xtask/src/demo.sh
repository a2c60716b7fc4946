# What `cargo xtask demo` runs in the guest: demo.sh v1|v2|hybrid with-guard|without-guard
#
# Ends with 0 when everything was as it says, else with 1 and a plain sentence.

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
# How long CRIU may write nothing to its log before we say that it hangs, s.
hang=8

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

# Each process of the workload counts in a file of its own.
read_counters() {
    local path value
    values=()
    for path in "$counters"/[0-9]*; do
        # The file may be in the middle of a write: then the next look counts.
        value=$(tr -cd 0-9 <"$path")
        values+=($((10#0$value)))
    done
}

show_counters() {
    read_counters
    echo "counters: ${values[*]}"
}

# Each counter is beyond what it was: `grown AT_LEAST EARLIER...`
grown() {
    local at_least=$1 index=0 earlier
    shift
    [ "$#" -gt 0 ] && [ "$#" -eq "${#values[@]}" ] || return 1
    for earlier; do
        [ "${values[index]}" -ge $((earlier + at_least)) ] || return 1
        index=$((index + 1))
    done
}

# The intruder: waits until CRIU has frozen the cgroup and thawed it again,
# then writes. A program of its own, so that it has a name of its own.
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
    echo "  [intruder] \$ echo $1 > $2"
    if { echo "$1" >"$2"; } 2>/tmp/intruder.error; then
        outcome='went through'
    else
        outcome=$(sed 's/.*: //' /tmp/intruder.error)
    fi
    echo "  [intruder] $outcome"
    echo "$outcome" >>"$said"
    shift 2
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

# strace holds CRIU for 1.5 s after each of its writes to the freezer.
slow_criu=(strace -o /dev/null -P "$app/$file" -e "inject=write:delay_exit=1500000")

show_command() {
    local prefix='$ ' part
    for part; do
        echo "  $prefix$part"
        prefix='      '
    done
}

echo
echo "This is Linux $(uname -r), cgroup $layout, with CRIU $(criu --version | sed -n "s/^Version: //p")."

step 'A workload starts in a cgroup.'
mkdir -p "$pod" "$app" "$counters" /tmp/image || fail "the cgroup $app could not be made"
echo "  \$ guest-tool workload $counters --cgroup $app --processes 2"
root=$(guest-tool workload "$counters" --cgroup "$app" --processes 2) ||
    fail 'the workload did not start'
sleep 1
show_counters
first=("${values[@]}")
sleep 1
show_counters
grown 1 "${first[@]}" || fail 'the counters do not grow'
echo "It is a small tree of processes, its root is pid $root. Each counts every 10 ms."

criu_dump=(criu dump -t "$root" -D /tmp/image -o dump.log -v4 --freeze-cgroup "$app")
log=/tmp/image/dump.log

if [ "$guard" = without-guard ]; then
    step 'CRIU dumps it. Nobody guards the cgroup.'
    echo 'CRIU freezes the cgroup, seizes its tasks, and thaws it again to work in them.'
    echo 'An intruder freezes it just then: a container engine, an administrator, a suspend.'
    echo '(strace slows CRIU down a little, so that there is time to hit that moment.)'
    show_command "${slow_criu[*]} \\" "${criu_dump[*]}"
    start_intruder "$freeze" "$app/$file"
    "${slow_criu[@]}" "${criu_dump[@]}" >/dev/null 2>&1 &
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
    grep -q 'went through' /tmp/intruder.said || fail "the intruder's freeze did not go through"
    [ -d "/proc/$dump" ] || fail 'CRIU did not hang'

    step 'CRIU hangs.'
    echo "It has done nothing for $hang s, and it has no time-out. Its last words:"
    tail -n 1 "$log" | sed 's/^/  /'
    echo 'It waits for code of its own to run inside a task, and a frozen task runs no code.'
    echo "The workload is frozen too:"
    show_counters
    frozen=("${values[@]}")
    sleep 1
    show_counters
    [ "${frozen[*]}" = "${values[*]}" ] || fail 'the workload still runs'

    step 'Somebody kills CRIU and thaws the cgroup.'
    kill -KILL "$dump"
    wait "$dump" 2>/dev/null
    killall -q -KILL criu
    sleep 1
    echo "  \$ echo $thaw > $app/$file"
    echo "$thaw" >"$app/$file"
    sleep 2
    if [ -d "/proc/$root" ] && ! grep -q '^State:.*[ZX]' "/proc/$root/status"; then
        echo 'The workload goes on this time. There is no checkpoint.'
    else
        echo "The root of the workload, pid $root, died of it. There is no checkpoint either."
    fi
    echo
    echo 'THE HANG WAS SHOWN. `cargo xtask demo` shows the same with the guard.'
    exit 0
fi

step 'CRIU dumps it under freezer-guard, and an intruder tries to interfere.'
echo 'CRIU freezes the cgroup, seizes its tasks, and thaws it again to work in them.'
echo 'A freeze by anybody else would hang it just then. The intruder tries.'
echo '(strace slows CRIU down a little, so that there is time to hit that moment.)'
show_command "freezer-guard run --cgroup $app --freeze --timeout 2m -- \\" "${slow_criu[*]} \\" "${criu_dump[*]}"
start_intruder \
    "$freeze" "$app/$file" "$thaw" "$app/$file" \
    "$freeze" "$pod/$file" "$thaw" "$pod/$file"
freezer-guard run --cgroup "$app" --freeze --timeout 2m -- "${slow_criu[@]}" "${criu_dump[@]}"
code=$?
[ "$code" -eq 0 ] || fail "freezer-guard run ended with $code"
# The intruder is done, or never had its moment.
for _ in 1 2 3 4 5; do
    grep -q done /tmp/intruder.said && break
    sleep 1
done
kill "$intruder" 2>/dev/null
[ "$(grep -c "$refused" /tmp/intruder.said)" = 4 ] ||
    log='' fail 'not all four writes of the intruder were refused'
tail -n 1 "$log" | grep -q 'Dumping finished successfully' ||
    fail 'CRIU does not say that the dump is good'
echo 'All four writes were refused, and the dump is good:'
tail -n 1 "$log" | sed 's/^/  /'

step 'The workload is gone: it is in the image now.'
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
[ "${dumped[*]}" = "${values[*]}" ] || fail 'somebody still counts'
echo '  $ freezer-guard status'
status=$(freezer-guard status) || fail 'freezer-guard status failed'
echo "$status"
[ "$status" = 'no cgroup is guarded' ] || fail 'the guard is still there'
state=$(<"$app/$file")
[ "$state" = "$thaw" ] || fail "$app/$file says $state"

step 'CRIU restores it.'
echo '  $ criu restore -D /tmp/image -o restore.log -v4 -d'
log=/tmp/image/restore.log
criu restore -D /tmp/image -o restore.log -v4 -d </dev/null || fail 'the restore failed'
sleep 1
show_counters
grown 0 "${dumped[@]}" || fail 'the counters went back'
again=("${values[@]}")
sleep 1
show_counters
grown 1 "${again[@]}" || fail 'the counters do not grow'
echo 'The counters go on from where they were.'
echo
echo 'AS PROMISED: four refusals, a good dump, a good restore.'
