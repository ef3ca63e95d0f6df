# What the scripts of this folder share: the pinned tools, fetched below target/cross, and the list of targets.
# Sourced, never run. Owns no build.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
tools=$target_dir/cross

# Pinned, so that the same source gives the same binary next year.
ZIG=0.16.0
ZIGBUILD=0.24.0
AUDITABLE=0.7.7
DEB=3.8.0
CYCLONEDX=0.5.9

# Debian 11 and Jetson's L4T (Ubuntu 20.04) have this one; nothing newer may be asked for.
GLIBC=2.31

ALL_TARGETS=(aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf aarch64-unknown-linux-musl x86_64-unknown-linux-gnu)

DEB_TARGETS=(aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf x86_64-unknown-linux-gnu)

die() { echo "cross: $*" >&2; exit 1; }

# Stops at a name that is not one of ours: a typing mistake must not start a build of an untested target.
known() {
  local target
  for target in "${ALL_TARGETS[@]}"; do [ "$target" = "$1" ] && return; done
  die "$1 is none of: ${ALL_TARGETS[*]}"
}

# Debian's name of an architecture.
arch() {
  case $1 in
    aarch64-*) echo arm64 ;;
    armv7-*) echo armhf ;;
    x86_64-*) echo amd64 ;;
  esac
}

# Zig's name of a target: with the C library's version.
zig_name() {
  case $1 in
    *-gnu*) echo "$1.$GLIBC" ;;
    *) echo "$1" ;;
  esac
}

# Zig as C compiler and linker: it brings the start files and symbol lists of every glibc, so no sysroot is needed.
need_zig() {
  local python=$tools/venv/bin/python
  if [ "$("$python" -m ziglang version 2>/dev/null)" != "$ZIG" ] ||
    [ "$("$tools/venv/bin/cargo-zigbuild" --version 2>/dev/null)" != "cargo-zigbuild $ZIGBUILD" ]; then
    echo "cross: fetching ziglang $ZIG and cargo-zigbuild $ZIGBUILD (PyPI)" >&2
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD"
  fi
  export CARGO_ZIGBUILD_ZIG_PATH=$tools/venv/bin/zig
  printf '#!/bin/sh\nexec "%s" -m ziglang "$@"\n' "$python" >"$CARGO_ZIGBUILD_ZIG_PATH"
  chmod +x "$CARGO_ZIGBUILD_ZIG_PATH"
  export PATH=$tools/venv/bin:$PATH
}

# A cargo subcommand from crates.io, built once. Its own speed does not matter: it is built for a short build.
need_cargo() {
  local name=$1 version=$2
  if [ ! -e "$tools/$name-$version" ]; then
    echo "cross: building $name $version (crates.io)" >&2
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_STRIP=true \
      cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" "$name@$version" || die "$name $version could not be built"
    : >"$tools/$name-$version"
  fi
  export PATH=$tools/bin:$PATH
}

# This machine's own mirror of Debian. Of an old release only its main part is used: the one with updates goes sooner.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | sort -u | head -1
}
