/* Records every change below RIG_DIR, and every mark of the driver, in the one order in which they happened.
 *
 * Owns RIG_TRACE; RIG_SYNC_US makes each sync as slow as a card's, RIG_DROP_SYNCS=n forgets every n-th of them (it
 * succeeds and is not in the trace). Never changes what a call does.
 * A record: operation (1 byte), descriptor (4), offset (8), length (4), second length (4), then both texts. */
#include "shim.h"

static int trace = -1;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

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

static int opened(int fd, const char *path, int flags) {
    note_open(fd, path);
    if (kind(fd) == FD_WATCHED) {
        const char *name = below(path);
        int64_t how = (flags & O_CREAT ? 1 : 0) | (flags & O_TRUNC ? 2 : 0);
        put('o', fd, how, name, (uint32_t)strlen(name), NULL, 0);
    }
    return fd;
}

#define OPENING(name)                                                      \
    int name(const char *path, int flags, ...) {                           \
        va_list list;                                                      \
        va_start(list, flags);                                             \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                                      \
        pthread_mutex_lock(&one);                                          \
        int fd = opened(REAL(name)(path, flags, mode), path, flags);       \
        int kept = errno;                                                  \
        pthread_mutex_unlock(&one);                                        \
        errno = kept;                                                      \
        return fd;                                                         \
    }
OPENING(open)
OPENING(open64)

int close(int fd) {
    pthread_mutex_lock(&one);
    if (kind(fd) == FD_WATCHED) put('c', fd, 0, NULL, 0, NULL, 0);
    if (fd >= 0 && fd < FDS_MAX) kind_of[fd] = FD_OTHER;
    int done = REAL(close)(fd);
    int kept = errno;
    pthread_mutex_unlock(&one);
    errno = kept;
    return done;
}

static ssize_t written(int fd, const void *bytes, int64_t at, ssize_t n) {
    int kept = errno;
    if (n > 0 && kind(fd) == FD_MARKS) put('m', fd, 0, bytes, (uint32_t)n, NULL, 0);
    if (n > 0 && kind(fd) == FD_WATCHED) put('w', fd, at, bytes, (uint32_t)n, NULL, 0);
    errno = kept;
    return n;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    static __typeof__(&write) real_write;
    if (!real_write) real_write = REAL(write);
    if (kind(fd) == FD_OTHER) return real_write(fd, bytes, n);
    pthread_mutex_lock(&one);
    int64_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = written(fd, bytes, at, real_write(fd, bytes, n));
    pthread_mutex_unlock(&one);
    return done;
}

#define PWRITING(name)                                                         \
    ssize_t name(int fd, const void *bytes, size_t n, off64_t at) {            \
        if (kind(fd) == FD_OTHER) return REAL(name)(fd, bytes, n, at);         \
        pthread_mutex_lock(&one);                                              \
        ssize_t done = written(fd, bytes, at, REAL(name)(fd, bytes, n, at));   \
        pthread_mutex_unlock(&one);                                            \
        return done;                                                           \
    }
PWRITING(pwrite)
PWRITING(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (kind(fd) == FD_OTHER) return REAL(writev)(fd, parts, n);
    return n > 0 ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0; /* a short write is allowed */
}

#define CUTTING(name)                                                          \
    int name(int fd, off64_t to) {                                             \
        pthread_mutex_lock(&one);                                              \
        int done = REAL(name)(fd, to);                                         \
        int kept = errno;                                                      \
        if (done == 0 && kind(fd) == FD_WATCHED) put('t', fd, to, NULL, 0, NULL, 0); \
        pthread_mutex_unlock(&one);                                            \
        errno = kept;                                                          \
        return done;                                                           \
    }
CUTTING(ftruncate)
CUTTING(ftruncate64)

static int synced(const char *name, int fd) {
    static long syncs;
    if (kind(fd) == FD_WATCHED && number("RIG_SYNC_US")) usleep((useconds_t)number("RIG_SYNC_US"));
    pthread_mutex_lock(&one);
    int done = ((int (*)(int))real(name))(fd);
    int kept = errno;
    long every = number("RIG_DROP_SYNCS");
    if (done == 0 && kind(fd) == FD_WATCHED && !(every && ++syncs % every == 0)) put('s', fd, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&one);
    errno = kept;
    return done;
}
int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }

static int named(int done, char op, const char *a, const char *b) {
    int kept = errno;
    if (done == 0 && below(a)) {
        const char *x = below(a), *y = b ? below(b) : "";
        if (!y) abort(); /* out of the watched folder: no test does that */
        put(op, -1, 0, x, (uint32_t)strlen(x), y, (uint32_t)strlen(y));
    }
    pthread_mutex_unlock(&one);
    errno = kept;
    return done;
}
int unlink(const char *path) {
    pthread_mutex_lock(&one);
    return named(REAL(unlink)(path), 'u', path, NULL);
}
int rmdir(const char *path) {
    pthread_mutex_lock(&one);
    return named(REAL(rmdir)(path), 'u', path, NULL);
}
int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&one);
    return named(REAL(mkdir)(path, mode), 'd', path, NULL);
}
int rename(const char *from, const char *to) {
    pthread_mutex_lock(&one);
    return named(REAL(rename)(from, to), 'r', from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    pthread_mutex_lock(&one);
    return named(REAL(linkat)(a, from, b, to, flags), 'l', from, to);
}
