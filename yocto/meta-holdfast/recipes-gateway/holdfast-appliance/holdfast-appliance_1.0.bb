# Owns: what turns a read-only image into a gateway: the data partition's mounts, journal, watchdog, the boot's health check.
# Never: the gateway itself (holdfast), slots and bundles (dynamic-layers/rauc).

SUMMARY = "Data partition, journal, watchdog and boot check of a holdfast image"
DESCRIPTION = "Mount units for the partition that survives updates, limits of the journal, the board's own watchdog, and the check of a boot that an update has to pass."
SECTION = "base"
LICENSE = "MIT"
# nooelint: oelint.var.licenseremotefile - these files lie in the layer
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"
CVE_PRODUCT = ""

SRC_URI = "\
    file://60-holdfast-appliance.conf;subdir=${BP} \
    file://await-health;subdir=${BP} \
    file://data.mount;subdir=${BP} \
    file://holdfast-health.service;subdir=${BP} \
    file://journald.conf;subdir=${BP} \
    file://system.conf;subdir=${BP} \
    file://var-lib-holdfast.mount;subdir=${BP} \
    file://var-lib-systemd.mount;subdir=${BP} \
    file://var-log-journal.mount;subdir=${BP} \
"

inherit allarch features_check systemd

REQUIRED_DISTRO_FEATURES = "systemd"

# Name of the partition's file system; the preinit of overlayfs-etc finds it by the same name.
HOLDFAST_DATA_LABEL ??= "holdfast-data"

do_configure[noexec] = "1"

do_compile() {
    sed 's|@LABEL@|${HOLDFAST_DATA_LABEL}|' ${S}/data.mount > ${B}/data.mount.out
}

do_install() {
    install -d ${D}/data ${D}${systemd_system_unitdir}/holdfast.service.d ${D}${libexecdir}/holdfast
    install -D -m 0644 ${B}/data.mount.out ${D}${systemd_system_unitdir}/data.mount
    install -m 0644 ${S}/holdfast-health.service ${S}/var-lib-holdfast.mount ${S}/var-lib-systemd.mount \
        ${S}/var-log-journal.mount ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/60-holdfast-appliance.conf ${D}${systemd_system_unitdir}/holdfast.service.d
    install -D -m 0644 ${S}/journald.conf ${D}${systemd_unitdir}/journald.conf.d/60-holdfast.conf
    install -D -m 0644 ${S}/system.conf ${D}${systemd_unitdir}/system.conf.d/60-holdfast.conf
    install -m 0755 ${S}/await-health ${D}${libexecdir}/holdfast
}

SYSTEMD_SERVICE:${PN} = "\
    data.mount \
    holdfast-health.service \
    var-lib-holdfast.mount \
    var-lib-systemd.mount \
    var-log-journal.mount \
"

FILES:${PN} += "\
    /data \
    ${systemd_system_unitdir}/holdfast.service.d \
    ${systemd_unitdir}/journald.conf.d \
    ${systemd_unitdir}/system.conf.d \
"
RDEPENDS:${PN} = "holdfast"
