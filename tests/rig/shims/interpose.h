/* The calls that both shims stand in for, each with its lock and the caller's errno; included after the hooks below.
 *
 * Owns the way in and out of a call. What a call on a watched file or on the marks does is the shim's own:
 *   on_open, on_close, on_write, on_pwrite, on_cut, on_sync   with the lock held; each makes the real call itself
 *   before_sync                                               without the lock: it may take time
 * Calls on any other descriptor pass through. */

#define LOCKED(type, call)           \
    ({                               \
        pthread_mutex_lock(&one);    \
        type done = (call);          \
        int kept = errno;            \
        pthread_mutex_unlock(&one);  \
        errno = kept;                \
        done;                        \
    })

#define OPENING(name)                                                           \
    int name(const char *path, int flags, ...) {                                \
        va_list list;                                                           \
        va_start(list, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                                           \
        return LOCKED(int, on_open(REAL(name), path, flags, mode));             \
    }
OPENING(open)
OPENING(open64)

static int closed(int fd) {
    on_close(fd);
    if (fd >= 0 && fd < FDS_MAX) kind_of[fd] = FD_OTHER;
    return REAL(close)(fd);
}
int close(int fd) { return LOCKED(int, closed(fd)); }

ssize_t write(int fd, const void *bytes, size_t n) {
    static __typeof__(&write) real_write;
    if (!real_write) real_write = REAL(write);
    if (kind(fd) == FD_OTHER) return real_write(fd, bytes, n);
    return LOCKED(ssize_t, on_write(real_write, fd, bytes, n));
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (kind(fd) == FD_OTHER) return REAL(writev)(fd, parts, n);
    return n > 0 ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0; /* a short write is allowed */
}

#define PWRITING(name)                                                   \
    ssize_t name(int fd, const void *bytes, size_t n, off64_t at) {      \
        if (kind(fd) == FD_OTHER) return REAL(name)(fd, bytes, n, at);   \
        return LOCKED(ssize_t, on_pwrite(REAL(name), fd, bytes, n, at)); \
    }
PWRITING(pwrite)
PWRITING(pwrite64)

#define CUTTING(name)                                      \
    int name(int fd, off64_t to) {                         \
        if (kind(fd) == FD_OTHER) return REAL(name)(fd, to); \
        return LOCKED(int, on_cut(REAL(name), fd, to));    \
    }
CUTTING(ftruncate)
CUTTING(ftruncate64)

#define SYNCING(name)                                  \
    int name(int fd) {                                 \
        if (kind(fd) == FD_OTHER) return REAL(name)(fd); \
        before_sync(fd);                               \
        return LOCKED(int, on_sync(REAL(name), fd));   \
    }
SYNCING(fsync)
SYNCING(fdatasync)
