# Owns: what happens to an update whose gateway does not get healthy. Never: judging health (holdfast-appliance).

SUMMARY = "Falls back to the other system if an update's gateway is not healthy"
DESCRIPTION = "RAUC marks a system good only after a healthy boot; an unhealthy one on trial is started anew until the boot loader takes the other system."
SECTION = "base"
LICENSE = "MIT"
# nooelint: oelint.var.licenseremotefile - these files lie in the layer
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"
CVE_PRODUCT = ""

SRC_URI = "\
    file://boot.mount;subdir=${BP} \
    file://holdfast-trial-failed.service;subdir=${BP} \
    file://on-failure.conf;subdir=${BP} \
    file://trial-begin;subdir=${BP} \
    file://trial-failed;subdir=${BP} \
    file://trial-passed;subdir=${BP} \
    file://trial-passed.conf;subdir=${BP} \
"

inherit allarch features_check systemd

REQUIRED_DISTRO_FEATURES = "systemd rauc"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${libexecdir}/holdfast
    install -m 0755 ${S}/trial-begin ${S}/trial-failed ${S}/trial-passed ${D}${libexecdir}/holdfast
    install -D -m 0644 ${S}/boot.mount ${D}${systemd_system_unitdir}/boot.mount
    install -m 0644 ${S}/holdfast-trial-failed.service ${D}${systemd_system_unitdir}
    install -D -m 0644 ${S}/on-failure.conf ${D}${systemd_system_unitdir}/holdfast-health.service.d/60-trial.conf
    install -D -m 0644 ${S}/trial-passed.conf ${D}${systemd_system_unitdir}/rauc-mark-good.service.d/60-trial.conf
}

SYSTEMD_SERVICE:${PN} = "boot.mount"

FILES:${PN} += "${systemd_system_unitdir}"
RDEPENDS:${PN} = "holdfast-appliance rauc-mark-good"
