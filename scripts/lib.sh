# Set-up shared by scripts/run and scripts/test; sourced by bash, does nothing by itself.
#
# What it makes sure of, each only if it is missing: Debian packages (by apt-get, as root only), a
# virtual environment in .venv, and in it this project, editable, with what its tests need. The
# environment is installed again only when what decides its contents has changed, so that a second
# run starts at once.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$here/.venv

build_packages=(libfuse3-dev fuse3 pkg-config gcc libc6-dev python3-venv python3-dev)
client_packages=(
    procmail maildrop mutt alpine s-nail bsd-mailx liblockfile-bin vim nano ed sed attr acl bindfs
    dovecot-core dovecot-imapd dovecot-pop3d mailutils tmux strace postfix
)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$@"
    exit 69 # EX_UNAVAILABLE
}

# missing_packages PACKAGE...: print those that are not installed.
missing_packages() {
    local package status
    for package; do
        status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=none
        [ "$status" = installed ] || printf '%s\n' "$package"
    done
}

# need_packages PACKAGE...: install those that are missing, or say which they are.
need_packages() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        [ -x "$venv/bin/mailfs" ] && return
        say "this is no Debian system; needed are what Debian calls: $*"
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" -eq 0 ] || die "packages are missing; as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    # Debian's postfix asks what kind of host this is; this answer leaves it unconfigured.
    if [[ " ${missing[*]} " == *" postfix "* ]] && command -v debconf-set-selections >/dev/null; then
        debconf-set-selections <<<'postfix postfix/main_mailer_type select No configuration'
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2
    apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "${missing[@]}" >/dev/null
}

# find_python: print the newest Python from 3.11 that can make virtual environments and build
# extensions. A name in PATH may be a stand-in that does not work, so each is asked.
find_python() {
    local candidate check='
import sys, sysconfig, os, venv, ensurepip
assert sys.version_info >= (3, 11) and sys.implementation.name == "cpython"
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(sys.executable)
'
    while read -r candidate; do
        timeout 20 "$candidate" -c "$check" 2>/dev/null && return
    done < <(
        compgen -c python3. | grep -xE 'python3\.[0-9]+' | sort -u -t. -k2,2nr || true
        printf '%s\n' python3 /usr/bin/python3
    )
    return 1
}

# fingerprint: what decides the contents of .venv.
fingerprint() {
    (
        cd "$here"
        printf '%s\n' "$here"
        cat pyproject.toml
        for file in setup.py mailfs/fuse/*.{pyx,pxd,h}; do
            [ ! -e "$file" ] || cat "$file"
        done
    ) | sha256sum | cut -d' ' -f1
}

# up_to_date STAMP: whether .venv holds what it should, and works.
up_to_date() {
    [ "$(cat "$venv/mailfs-stamp" 2>/dev/null)" = "$1" ] || return 1
    [ ! -e "$here/mailfs/fuse/_bridge.pyx" ] || compgen -G "$here/mailfs/fuse/_bridge*.so" >/dev/null || return 1
    "$venv/bin/python" -c '' 2>/dev/null
}

# need_venv: make .venv and install the project into it.
need_venv() {
    local stamp python
    stamp=$(fingerprint)
    ! up_to_date "$stamp" || return 0
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || die "no Python from 3.11 with headers and venv; install python3-venv python3-dev"
        say "making .venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    say "building mailfs into .venv (this takes a minute or two the first time)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$here[test]" >&2 ||
        die "the build failed; what pip said is above"
    printf '%s\n' "$stamp" >"$venv/mailfs-stamp"
}

# need_fuse: stop with the remedy if nothing can be mounted here.
need_fuse() {
    [ -e /dev/fuse ] || die "/dev/fuse is missing: run 'modprobe fuse' as root; a container must be given it (--device /dev/fuse --cap-add SYS_ADMIN)${1:-}"
    { : <>/dev/fuse; } 2>/dev/null ||
        die "/dev/fuse cannot be opened by $(id -un): its mode should be 0666${1:-}"
    [ "$(id -u)" -eq 0 ] || command -v fusermount3 >/dev/null ||
        die "fusermount3 is missing, which ordinary users need: install the package fuse3${1:-}"
}
