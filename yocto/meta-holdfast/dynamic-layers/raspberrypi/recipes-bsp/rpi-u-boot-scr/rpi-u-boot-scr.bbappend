# Owns: the Raspberry Pi's choice between system A and B, in builds with RAUC only.

# nooelint: oelint.vars.noncoreoverride - the recipe is for Raspberry Pis alone; without "rauc" nothing changes
FILESEXTRAPATHS:prepend := "${@bb.utils.contains('DISTRO_FEATURES', 'rauc', '${THISDIR}/files:', '', d)}"
