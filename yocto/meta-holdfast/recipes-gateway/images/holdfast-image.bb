# Owns: what a gateway's image holds and how its disk is cut. Never: the board's own settings (kas/, the board's layer).

SUMMARY = "Read-only gateway image with a data partition"
DESCRIPTION = "The gateway, a journal that survives reboots, the board's watchdog and time from the network, on a read-only root; /etc, the journal and stored requests lie on a data partition that updates leave alone."
SECTION = "base"
LICENSE = "MIT"
CVE_PRODUCT = ""

# Partitions: boot, system A, system B, data. Before "inherit", which sets the same ones weakly.
WKS_FILE:qemuall = "holdfast-qemu.wks.in"
# nooelint: oelint.vars.specific - all boards of meta-raspberrypi have this override
WKS_FILE:rpi = "holdfast-raspberrypi.wks.in"

# What lies on the boot partition; with RAUC's U-Boot, its script instead (kas/rauc-qemuarm64.yml).
IMAGE_BOOT_FILES:qemuall ?= "${KERNEL_IMAGETYPE}"

inherit core-image features_check

REQUIRED_DISTRO_FEATURES = "systemd usrmerge"

IMAGE_FEATURES += "overlayfs-etc read-only-rootfs"

HOLDFAST_DATA_LABEL ??= "holdfast-data"
OVERLAYFS_ETC_MOUNT_POINT = "/data"
OVERLAYFS_ETC_FSTYPE = "ext4"
# util-linux's mount finds it by name, on each board; it runs before there is a udev.
OVERLAYFS_ETC_DEVICE ?= "LABEL=${HOLDFAST_DATA_LABEL}"
# /data is in the image; the default would make the root writable at each boot to create it.
OVERLAYFS_ETC_CREATE_MOUNT_DIRS = "0"
OVERLAYFS_ETC_MOUNT_OPTIONS = "noatime,nosuid,nodev,noexec,errors=remount-ro"

# Each of the two systems, and the data to begin with.
HOLDFAST_SYSTEM_SIZE ?= "512M"
HOLDFAST_DATA_SIZE ?= "1G"

IMAGE_INSTALL = "\
    packagegroup-core-boot \
    holdfast \
    holdfast-appliance \
    kernel-modules \
    util-linux-mount \
    ${@bb.utils.contains('DISTRO_FEATURES', 'rauc', 'rauc holdfast-trial kernel-image', '', d)} \
    ${HOLDFAST_LOCAL_MODEL} \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"
# "packagegroup-holdfast-local-model" puts llama.cpp's server beside the gateway.
HOLDFAST_LOCAL_MODEL ?= ""

# nooelint: oelint.task.noanonpython - only a recipe's parsing can say why there is nothing to build
python () {
    tables = (d.getVar('FILESYSTEM_PERMS_TABLES') or '').split()
    volatile = d.getVar('VOLATILE_LOG_DIR')
    if volatile is None:
        lost = 'files/fs-perms-volatile-log.txt' in tables
    else:
        lost = oe.types.boolean(volatile)
    if lost:
        raise bb.parse.SkipRecipe("the journal would be lost at each reboot: set VOLATILE_LOG_DIR = \"no\" (scarthgap) or "
                                  "FILESYSTEM_PERMS_TABLES:remove = \"files/fs-perms-volatile-log.txt\" (wrynose)")
}
