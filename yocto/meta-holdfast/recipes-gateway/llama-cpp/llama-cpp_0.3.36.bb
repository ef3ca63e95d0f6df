# Owns: llama.cpp's server as a gateway's local model, on the processor. Never: the model's file.

SUMMARY = "llama.cpp's server, OpenAI's language on loopback"
DESCRIPTION = "The server of llama.cpp, built for the processor, as the local model of a holdfast gateway."
HOMEPAGE = "https://github.com/ggml-org/llama.cpp"
BUGTRACKER = "https://github.com/ggml-org/llama.cpp/issues"
SECTION = "net"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://llama_cpp_python-${PV}/vendor/llama.cpp/LICENSE;md5=223b26b3c1143120c87e2b13111d3e99"
CVE_PRODUCT = "llama.cpp"

# The sources as llama-cpp-python publishes them with each release (and its version number): a file that stays, with a checksum.
SRC_URI = "\
    https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/llama_cpp_python-${PV}.tar.gz;subdir=${BP} \
    file://50-llama.toml;subdir=${BP} \
    file://llama-server.service;subdir=${BP} \
"
SRC_URI[sha256sum] = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

inherit cmake systemd

OECMAKE_SOURCEPATH = "${S}/llama_cpp_python-${PV}/vendor/llama.cpp"
OECMAKE_TARGET_COMPILE = "llama-server"
# Nothing from the network, nothing tuned to the machine that builds, no page: the gateway is the way in.
EXTRA_OECMAKE = "\
    -DBUILD_SHARED_LIBS=OFF \
    -DGGML_CCACHE=OFF \
    -DGGML_NATIVE=OFF \
    -DGGML_OPENMP=OFF \
    -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_OPENSSL=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF \
"

do_install() {
    install -D -m 0755 ${B}/bin/llama-server ${D}${bindir}/llama-server
    install -D -m 0644 ${S}/llama-server.service ${D}${systemd_system_unitdir}/llama-server.service
    install -D -m 0644 ${S}/50-llama.toml ${D}${sysconfdir}/holdfast/conf.d/50-llama.toml
}

SYSTEMD_SERVICE:${PN} = "llama-server.service"

CONFFILES:${PN} = "${sysconfdir}/holdfast/conf.d/50-llama.toml"
