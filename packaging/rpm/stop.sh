# A part of the RPM's removal script, in the place of Debian's `#DEBHELPER#`.
if command -v systemctl >/dev/null; then
    active=
    # RPM runs no script after a refused removal: the units stay enabled or disabled, and those that were
    # active start again.
    finish() {
        if [ $? = 0 ]; then
            systemctl --no-reload disable freezer-guard.service freezer-guard.socket \
                freezer-guard-metrics.socket >/dev/null 2>&1 || :
        elif [ -n "$active" ]; then
            # shellcheck disable=SC2086 # These are several words.
            systemctl start $active || :
        fi
    }
    trap finish EXIT
    if [ -d /run/systemd/system ]; then
        for unit in freezer-guard-metrics.socket freezer-guard.socket freezer-guard.service; do
            case $(systemctl is-active "$unit") in
            active | activating | reloading) active="$active $unit" ;;
            esac
        done
        systemctl stop freezer-guard.service freezer-guard.socket freezer-guard-metrics.socket || :
    fi
fi
