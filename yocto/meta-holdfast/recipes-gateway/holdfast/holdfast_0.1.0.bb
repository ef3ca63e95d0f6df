# Owns: building and installing the gateway. Never: what else an image holds (recipes-gateway/images).

SUMMARY = "Store-and-forward AI gateway"
DESCRIPTION = "Answers machines in OpenAI's language: from the cloud while the line is up, from the local model while it is not, and keeps every accepted request on disk until it is sent."
SECTION = "net"
LICENSE = "Apache-2.0 | MIT"
LIC_FILES_CHKSUM = "\
    file://LICENSE-APACHE;md5=22a53954e4e0ec258dfce4391e905dac \
    file://LICENSE-MIT;md5=29be5f63ad04c2fd0a07f2c4b82a2504 \
"
CVE_PRODUCT = "holdfast"

# oe-core's own Rust, unless meta-rust-bin is in the build: its ready-made Rust is there for releases with an older one.
HOLDFAST_CARGO_CLASS ?= "${@bb.utils.contains('BBFILE_COLLECTIONS', 'rust-bin-layer', 'cargo_bin', 'cargo', d)}"
# As "rust-version" in Cargo.toml.
HOLDFAST_RUST_MIN = "1.94"

# The source is the tree that this layer lies in, so a checkout builds exactly itself. HOLDFAST_SRC_URI takes another.
HOLDFAST_SOURCE ?= "${@os.path.normpath(d.getVar('THISDIR') + '/../../../..')}"
# nooelint: oelint.vars.fileextrapaths,oelint.vars.outofcontext - a path inside SRC_URI would make each folder a build of its own
FILESEXTRAPATHS:prepend := "${HOLDFAST_SOURCE}:"
HOLDFAST_SRC_URI ?= "\
    file://Cargo.toml;subdir=${BP} \
    file://Cargo.lock;subdir=${BP} \
    file://LICENSE-APACHE;subdir=${BP} \
    file://LICENSE-MIT;subdir=${BP} \
    file://build.rs;subdir=${BP} \
    file://cross/orderfile.ld;subdir=${BP} \
    file://src;subdir=${BP} \
    file://systemd;subdir=${BP} \
"
require holdfast-crates.inc
SRC_URI += "\
    ${HOLDFAST_SRC_URI} \
    file://run-ptest \
"

inherit cargo-update-recipe-crates ptest systemd useradd
inherit_defer ${HOLDFAST_CARGO_CLASS}

# Only the program of this folder; examples of the device's side have lists of crates of their own.
CARGO_LOCK_SRC_DIR = "${WORKDIR}/lock"
do_update_crates[prefuncs] += "holdfast_only_its_lock"
holdfast_only_its_lock[doc] = "Copies the program's own Cargo.lock to where update_crates looks"
holdfast_only_its_lock() {
    install -D -m 0644 ${S}/Cargo.lock ${CARGO_LOCK_SRC_DIR}/Cargo.lock
}

# As in .cargo/config.toml, which is read where Cargo is started in that tree only.
export LIBSQLITE3_FLAGS = "\
    -DHAVE_FDATASYNC=1 \
    -DSQLITE_DEFAULT_MEMSTATUS=0 \
    -DSQLITE_DQS=0 \
    -DSQLITE_OMIT_DEPRECATED \
    -DSQLITE_OMIT_LOAD_EXTENSION \
    -DSQLITE_OMIT_SHARED_CACHE \
    -USQLITE_ENABLE_COLUMN_METADATA \
    -USQLITE_ENABLE_DBSTAT_VTAB \
    -USQLITE_ENABLE_FTS3 \
    -USQLITE_ENABLE_FTS3_PARENTHESIS \
    -USQLITE_ENABLE_FTS5 \
    -USQLITE_ENABLE_LOAD_EXTENSION \
    -USQLITE_ENABLE_RTREE \
    -USQLITE_ENABLE_STAT4 \
    -USQLITE_SOUNDEX \
"

# Bitbake splits debug information off and strips; a binary that is stripped already would hide the sources' names from it.
export CARGO_PROFILE_RELEASE_STRIP = "false"
CARGO_BUILD_FLAGS:append = " --bin holdfast"
# meta-rust-bin does not know bitbake's crates: without the network, and from where the fetcher has put them.
EXTRA_CARGO_FLAGS = "--frozen"
do_configure:append() {
    if [ "${HOLDFAST_CARGO_CLASS}" = "cargo_bin" ]; then
        printf '[source.crates-io]\nreplace-with = "bitbake"\n[source.bitbake]\ndirectory = "%s"\n' \
            "${CARGO_HOME}/bitbake" > ${CARGO_HOME}/config.toml
    fi
}

do_install:append() {
    install -d ${D}${systemd_system_unitdir} ${D}${nonarch_libdir}/sysusers.d ${D}${nonarch_libdir}/tmpfiles.d \
        ${D}${nonarch_base_libdir}/udev/rules.d ${D}${sysconfdir}/holdfast/conf.d ${D}${docdir}/${BPN}
    install -m 0644 ${S}/systemd/holdfast.service ${S}/systemd/holdfast.socket ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/sysusers.d/holdfast.conf ${D}${nonarch_libdir}/sysusers.d
    install -m 0644 ${S}/systemd/tmpfiles.d/holdfast.conf ${D}${nonarch_libdir}/tmpfiles.d
    install -m 0644 ${S}/systemd/udev/60-holdfast-serial.rules ${D}${nonarch_base_libdir}/udev/rules.d
    install -m 0644 ${S}/systemd/holdfast.toml ${D}${sysconfdir}/holdfast
    install -d -m 0700 ${D}${sysconfdir}/holdfast/credentials
    install -m 0644 ${S}/systemd/holdfast.service.d/*.example ${D}${docdir}/${BPN}
}

# The same user as systemd/sysusers.d makes: the image's build compares the two.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system holdfast"
USERADD_PARAM:${PN} = "\
    --system --no-create-home --home-dir ${localstatedir}/lib/holdfast \
    --shell ${sbindir}/nologin --comment 'holdfast AI gateway' \
    --gid holdfast --groups dialout holdfast \
"

SYSTEMD_SERVICE:${PN} = "holdfast.service holdfast.socket"

FILES:${PN} += "${nonarch_libdir}/sysusers.d ${nonarch_libdir}/tmpfiles.d ${nonarch_base_libdir}/udev/rules.d"
CONFFILES:${PN} = "${sysconfdir}/holdfast/holdfast.toml"

# Adapters and boards that devices are joined by, where the kernel has their drivers as modules.
RRECOMMENDS:${PN} += "\
    kernel-module-cdc-acm \
    kernel-module-ch341 \
    kernel-module-cp210x \
    kernel-module-ftdi-sio \
    kernel-module-pl2303 \
"

BBCLASSEXTEND = "native"

# nooelint: oelint.task.noanonpython - only a recipe's parsing can say why there is nothing to build
python () {
    if d.getVar('HOLDFAST_CARGO_CLASS') != 'cargo':
        return
    have = (d.getVar('RUSTVERSION') or '0').rstrip('%')
    number = lambda version: [int(part) for part in version.split('.')[:2]]
    if number(have) < number(d.getVar('HOLDFAST_RUST_MIN')):
        raise bb.parse.SkipRecipe("holdfast wants Rust %s or newer and this release has %s: add meta-rust-bin to the layers"
                                  % (d.getVar('HOLDFAST_RUST_MIN'), have))
}
