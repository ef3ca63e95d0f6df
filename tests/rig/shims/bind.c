/* Writes the mode of each UNIX socket's file to RIG_BIND_LOG: right after bind, when it listens, and when it is
 * changed later. Owns nothing else. Built by the test: cc -shared -fPIC -O1 -o bind.so bind.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char bound[108];

static void note(const char *when, const char *path) {
    struct stat st;
    const char *log = getenv("RIG_BIND_LOG");
    char line[256];
    if (!log || stat(path, &st) != 0) return;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int n = snprintf(line, sizeof line, "%s %o\n", when, st.st_mode & 07777);
    if (fd >= 0 && write(fd, line, n) >= 0) close(fd);
}

int bind(int fd, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    int result = real(fd, address, length);
    if (result == 0 && address->sa_family == AF_UNIX) {
        strncpy(bound, ((const struct sockaddr_un *)address)->sun_path, sizeof bound - 1);
        note("bind", bound);
    }
    return result;
}

int listen(int fd, int backlog) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "listen");
    if (bound[0]) note("listen", bound);
    return real(fd, backlog);
}
