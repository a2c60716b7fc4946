# A part of the RPM's removal script, in the place of Debian's `#DEBHELPER#`.
if command -v systemctl >/dev/null; then
    systemctl --no-reload disable freezer-guard.service freezer-guard.socket >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then
        # RPM runs no script after a refused removal.
        trap '[ $? = 0 ] || systemctl enable --now freezer-guard.socket freezer-guard.service' EXIT
        systemctl stop freezer-guard.service freezer-guard.socket || :
    fi
fi
