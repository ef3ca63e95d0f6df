/* Makes each commit slow: the first bytes that go to a write-ahead log after a sync go there RIG_SLOW_MS late,
 * or as late as the file RIG_SLOW_FILE says at that time.
 *
 * Whoever was told before the commit, and kills the process then, finds that nothing was written. Owns no other delay and
 * never changes what a call does. Works with a dynamically linked program only. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

/* Whether nothing was written to a log since the last sync. */
static atomic_int between_commits = 1;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static int is_log(int fd) {
    char link[32], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    return n > 4 && memcmp(path + n - 4, "-wal", 4) == 0;
}

/* RIG_SLOW_MS, or what the file that RIG_SLOW_FILE names says now. */
static long delay_ms(void) {
    const char *text = getenv("RIG_SLOW_MS"), *path = getenv("RIG_SLOW_FILE");
    long ms = text ? atol(text) : 0;
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%ld", &ms) != 1) ms = 0;
        fclose(file);
    }
    return ms;
}

static void before_write(int fd) {
    int kept = errno;
    if (is_log(fd) && atomic_exchange(&between_commits, 0)) {
        long ms = delay_ms();
        struct timespec rest = {ms / 1000, ms % 1000 * 1000000};
        while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {}
    }
    errno = kept;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    before_write(fd);
    return REAL(write)(fd, bytes, n);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    before_write(fd);
    return REAL(pwrite)(fd, bytes, n, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    before_write(fd);
    return REAL(pwrite64)(fd, bytes, n, at);
}
int fsync(int fd) {
    int done = REAL(fsync)(fd);
    atomic_store(&between_commits, 1);
    return done;
}
int fdatasync(int fd) {
    int done = REAL(fdatasync)(fd);
    atomic_store(&between_commits, 1);
    return done;
}
