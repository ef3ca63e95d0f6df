# Owns: where the two systems lie and who may sign for them (RAUC_KEYRING_FILE).

# nooelint: oelint.vars.noncoreoverride - meta-rauc asks each layer to bring its own; parsed with meta-rauc only
FILESEXTRAPATHS:prepend := "${THISDIR}/files:"

# The disk of the partitions in holdfast-image: system A is its second, system B its third.
# nooelint: oelint.vars.noncoreoverride - a name of our own
HOLDFAST_DISK_PART ?= "/dev/mmcblk0p"
# nooelint: oelint.vars.noncoreoverride - a name of our own
HOLDFAST_DISK_PART:qemuall ?= "/dev/vda"

# nooelint: oelint.vars.noncoreoverride - fills in system.conf from files/
do_install:append() {
    find ${D} -name system.conf -exec sed -i \
        -e 's|@COMPATIBLE@|holdfast-${MACHINE}|' -e 's|@PART@|${HOLDFAST_DISK_PART}|' \
        -e 's|@KEYRING@|${@os.path.basename(d.getVar('RAUC_KEYRING_FILE'))}|' {} +
}

# nooelint: oelint.vars.noncoreoverride - system.conf names the machine and its disk
PACKAGE_ARCH = "${MACHINE_ARCH}"

# RAUC reads and writes the boot loader's counters with these.
# nooelint: oelint.vars.noncoreoverride - system.conf says bootloader=uboot
RDEPENDS:${PN} += "u-boot-env u-boot-fw-utils"
