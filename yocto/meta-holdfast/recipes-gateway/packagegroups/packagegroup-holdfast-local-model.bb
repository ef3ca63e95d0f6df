# Owns: which local model stands beside the gateway. Another: a bbappend with your own RDEPENDS, for example an Ollama recipe.

SUMMARY = "A local model for a holdfast gateway"
DESCRIPTION = "llama.cpp's server; the model's file is put on the data partition by whoever installs the gateway."
SECTION = "net"
LICENSE = "MIT"
CVE_PRODUCT = ""

inherit packagegroup

RDEPENDS:${PN} = "llama-cpp"
