/* What both shims share: the real functions, the watched folder, which descriptors lead into it.
 *
 * Owns RIG_DIR (the watched folder) and RIG_MARKS (the file into which the driver writes what it was told); never
 * decides what happens to a call. Works with a dynamically linked program only. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS_MAX 4096 /* above any limit that a test sets */
#define REAL(name) ((__typeof__(&name))real(#name))

enum { FD_OTHER = 0, FD_WATCHED = 1, FD_MARKS = 2 };

static unsigned char kind_of[FDS_MAX];
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* The path below the watched folder, "" for the folder itself, NULL for any other. */
static const char *below(const char *path) {
    static const char *dir;
    if (!dir) dir = getenv("RIG_DIR");
    if (!dir || !path) return NULL;
    size_t n = strlen(dir);
    if (strncmp(path, dir, n) != 0) return NULL;
    if (path[n] == '\0') return path + n;
    return path[n] == '/' ? path + n + 1 : NULL;
}

static int kind(int fd) { return fd >= 0 && fd < FDS_MAX ? kind_of[fd] : FD_OTHER; }

static void note_open(int fd, const char *path) {
    if (fd < 0 || fd >= FDS_MAX) return;
    const char *marks = getenv("RIG_MARKS");
    if (below(path)) kind_of[fd] = FD_WATCHED;
    else if (marks && strcmp(path, marks) == 0) kind_of[fd] = FD_MARKS;
    else kind_of[fd] = FD_OTHER;
}

/* Copies inside the kernel would pass by unseen: programs fall back to read and write. */
ssize_t copy_file_range(int a, off64_t *b, int c, off64_t *d, size_t e, unsigned f) {
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile64(int a, int b, off64_t *c, size_t d) {
    (void)a, (void)b, (void)c, (void)d;
    errno = ENOSYS;
    return -1;
}
