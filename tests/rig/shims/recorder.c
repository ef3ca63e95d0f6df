/* Records every change below RIG_DIR, and every mark of the driver, in the one order in which they happened.
 *
 * Owns RIG_TRACE; RIG_SYNC_US makes each sync as slow as a card's, RIG_DROP_SYNCS=n forgets every n-th of them (it
 * succeeds and is not in the trace). Never changes what a call does.
 * A record: operation (1 byte), descriptor (4), offset (8), length (4), second length (4), then both texts. */
#include "shim.h"

static int trace = -1;

static void put(char op, int fd, int64_t at, const void *a, uint32_t na, const void *b, uint32_t nb) {
    static __typeof__(&write) real_write;
    if (!real_write) real_write = REAL(write);
    if (trace < 0) {
        const char *path = getenv("RIG_TRACE");
        if (!path) return;
        trace = REAL(open64)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (trace < 0) abort();
    }
    unsigned char head[21];
    head[0] = (unsigned char)op;
    memcpy(head + 1, &fd, 4);
    memcpy(head + 5, &at, 8);
    memcpy(head + 13, &na, 4);
    memcpy(head + 17, &nb, 4);
    if (real_write(trace, head, 21) != 21) abort();
    if (na && real_write(trace, a, na) != (ssize_t)na) abort();
    if (nb && real_write(trace, b, nb) != (ssize_t)nb) abort();
}

static int on_open(__typeof__(&open) real_open, const char *path, int flags, mode_t mode) {
    int fd = real_open(path, flags, mode);
    int kept = errno;
    note_open(fd, path);
    if (kind(fd) == FD_WATCHED) {
        const char *name = below(path);
        int64_t how = (flags & O_CREAT ? 1 : 0) | (flags & O_TRUNC ? 2 : 0);
        put('o', fd, how, name, (uint32_t)strlen(name), NULL, 0);
    }
    errno = kept;
    return fd;
}

static void on_close(int fd) {
    if (kind(fd) == FD_WATCHED) put('c', fd, 0, NULL, 0, NULL, 0);
}

static ssize_t written(int fd, const void *bytes, int64_t at, ssize_t n) {
    int kept = errno;
    if (n > 0 && kind(fd) == FD_MARKS) put('m', fd, 0, bytes, (uint32_t)n, NULL, 0);
    if (n > 0 && kind(fd) == FD_WATCHED) put('w', fd, at, bytes, (uint32_t)n, NULL, 0);
    errno = kept;
    return n;
}

static ssize_t on_write(__typeof__(&write) real_write, int fd, const void *bytes, size_t n) {
    int64_t at = lseek(fd, 0, SEEK_CUR);
    return written(fd, bytes, at, real_write(fd, bytes, n));
}

static ssize_t on_pwrite(__typeof__(&pwrite64) real_pwrite, int fd, const void *bytes, size_t n, off64_t at) {
    return written(fd, bytes, at, real_pwrite(fd, bytes, n, at));
}

static int on_cut(__typeof__(&ftruncate64) real_cut, int fd, off64_t to) {
    int done = real_cut(fd, to);
    int kept = errno;
    if (done == 0 && kind(fd) == FD_WATCHED) put('t', fd, to, NULL, 0, NULL, 0);
    errno = kept;
    return done;
}

static void before_sync(int fd) {
    if (kind(fd) == FD_WATCHED && number("RIG_SYNC_US")) usleep((useconds_t)number("RIG_SYNC_US"));
}

static int on_sync(int (*real_sync)(int), int fd) {
    static long syncs;
    int done = real_sync(fd);
    int kept = errno;
    long every = number("RIG_DROP_SYNCS");
    if (done == 0 && kind(fd) == FD_WATCHED && !(every && ++syncs % every == 0)) put('s', fd, 0, NULL, 0, NULL, 0);
    errno = kept;
    return done;
}

#include "interpose.h"

static int named(int done, char op, const char *a, const char *b) {
    int kept = errno;
    if (done == 0 && below(a)) {
        const char *x = below(a), *y = b ? below(b) : "";
        if (!y) abort(); /* out of the watched folder: no test does that */
        put(op, -1, 0, x, (uint32_t)strlen(x), y, (uint32_t)strlen(y));
    }
    errno = kept;
    return done;
}
int unlink(const char *path) { return LOCKED(int, named(REAL(unlink)(path), 'u', path, NULL)); }
int rmdir(const char *path) { return LOCKED(int, named(REAL(rmdir)(path), 'u', path, NULL)); }
int mkdir(const char *path, mode_t mode) { return LOCKED(int, named(REAL(mkdir)(path, mode), 'd', path, NULL)); }
int rename(const char *from, const char *to) { return LOCKED(int, named(REAL(rename)(from, to), 'r', from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    return LOCKED(int, named(REAL(linkat)(a, from, b, to, flags), 'l', from, to));
}
