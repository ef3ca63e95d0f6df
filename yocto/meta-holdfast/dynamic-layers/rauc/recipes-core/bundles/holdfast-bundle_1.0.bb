# Owns: the signed file that updates a gateway. Never: how it gets there.

SUMMARY = "Signed update of a holdfast image"
DESCRIPTION = "One system as a RAUC bundle, written to the slot that is not in use."
SECTION = "base"
LICENSE = "MIT"
CVE_PRODUCT = ""

inherit bundle

RAUC_BUNDLE_COMPATIBLE = "holdfast-${MACHINE}"
# What "rauc info" shows; set it per build.
RAUC_BUNDLE_VERSION ?= "${PV}"
RAUC_BUNDLE_DESCRIPTION = "holdfast gateway"
RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_SLOTS = "rootfs"
RAUC_SLOT_rootfs = "holdfast-image"
RAUC_SLOT_rootfs[fstype] = "ext4"
