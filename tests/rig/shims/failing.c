/* Lets the n-th change below RIG_DIR fail, once or from then on, and forgets what a failed sync was to keep.
 *
 * RIG_FAIL_AT=n, RIG_FAIL_ERRNO=5|28|30, RIG_FAIL_EVER=1, RIG_FAIL_SYNCS=1 (count syncs only), RIG_COUNT (a file that gets
 * the number of calls at the end), RIG_FAIL_WHILE=path (each of them fails while this file is there), RIG_CUT=1 (at the end mark: what was not synced is lost, and the process ends there).
 * After a failed fsync the kernel calls the pages clean and may drop them: here it does so at once. Never touches reads. */
#include "shim.h"

#define FILES_MAX 1024 /* files that one driver writes */

struct undo { off64_t at, size; size_t n; char *old; struct undo *before; };
static struct { dev_t dev; ino64_t ino; int fd; struct undo *last; } files[FILES_MAX];
static int files_used;
static short file_of[FDS_MAX];
static long calls;

/* Whether this call is the one; errno is set then. */
static int fails(int is_sync) {
    const char *switched = getenv("RIG_FAIL_WHILE");
    if (switched) {
        int on = access(switched, F_OK) == 0;
        errno = on ? (int)number("RIG_FAIL_ERRNO") : errno;
        return on;
    }
    if (number("RIG_FAIL_SYNCS") && !is_sync) return 0;
    long at = number("RIG_FAIL_AT"), now = ++calls;
    if (!at || now < at || (now > at && !number("RIG_FAIL_EVER"))) return 0;
    errno = (int)number("RIG_FAIL_ERRNO");
    return 1;
}

static void track(int fd) {
    struct stat64 s;
    if (fd < 0 || fd >= FDS_MAX || fstat64(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        if (fd >= 0 && fd < FDS_MAX) file_of[fd] = -1;
        return;
    }
    for (int i = 0; i < files_used; i++)
        if (files[i].ino == s.st_ino && files[i].dev == s.st_dev) {
            file_of[fd] = (short)i;
            return;
        }
    if (files_used == FILES_MAX) abort();
    /* Held open, so that nobody gets its number. */
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    files[files_used].ino = s.st_ino;
    files[files_used].dev = s.st_dev;
    files[files_used].fd = REAL(open64)(path, O_RDWR | O_CLOEXEC);
    files[files_used].last = NULL;
    file_of[fd] = (short)files_used++;
}

/* Remembers what is about to be overwritten or cut off. */
static void remember(int fd, off64_t at, size_t n, int cuts) {
    int i = file_of[fd];
    struct stat64 s;
    if (i < 0 || files[i].fd < 0 || fstat64(files[i].fd, &s) != 0) return;
    if (cuts) n = s.st_size > at ? (size_t)(s.st_size - at) : 0;
    struct undo *u = malloc(sizeof *u);
    *u = (struct undo){.at = at, .size = s.st_size, .old = malloc(n ? n : 1), .before = files[i].last};
    ssize_t got = REAL(pread64)(files[i].fd, u->old, n, at);
    u->n = got > 0 ? (size_t)got : 0;
    files[i].last = u;
}

static void forget(int i) {
    while (i >= 0 && files[i].last) {
        struct undo *u = files[i].last;
        files[i].last = u->before;
        free(u->old);
        free(u);
    }
}

static void lose(int i) {
    for (struct undo *u = i < 0 ? NULL : files[i].last; u; u = u->before) {
        if (u->n && REAL(pwrite64)(files[i].fd, u->old, u->n, u->at) < 0) abort();
        if (REAL(ftruncate64)(files[i].fd, u->size) != 0) abort();
    }
    forget(i);
}

static void at_mark(const char *text, size_t n) {
    if (n != 4 || memcmp(text, "end\n", 4) != 0) return;
    const char *path = getenv("RIG_COUNT");
    if (path) {
        char line[32];
        int len = snprintf(line, sizeof line, "%ld", calls), fd = REAL(open64)(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (REAL(write)(fd, line, (size_t)len) != len) abort();
    }
    if (number("RIG_CUT")) {
        for (int i = 0; i < files_used; i++) lose(i);
        _exit(0);
    }
}

static int on_open(__typeof__(&open) real_open, const char *path, int flags, mode_t mode) {
    if (below(path) && flags & O_CREAT && fails(0)) return -1;
    int fd = real_open(path, flags, mode);
    int kept = errno;
    note_open(fd, path);
    if (kind(fd) == FD_WATCHED) track(fd);
    errno = kept;
    return fd;
}

static void on_close(int fd) { (void)fd; }

static ssize_t on_write(__typeof__(&write) real_write, int fd, const void *bytes, size_t n) {
    if (kind(fd) == FD_MARKS) {
        ssize_t done = real_write(fd, bytes, n);
        at_mark(bytes, n);
        return done;
    }
    if (fails(0)) return -1;
    remember(fd, lseek64(fd, 0, SEEK_CUR), n, 0);
    return real_write(fd, bytes, n);
}

static ssize_t on_pwrite(__typeof__(&pwrite64) real_pwrite, int fd, const void *bytes, size_t n, off64_t at) {
    if (fails(0)) return -1;
    remember(fd, at, n, 0);
    return real_pwrite(fd, bytes, n, at);
}

static int on_cut(__typeof__(&ftruncate64) real_cut, int fd, off64_t to) {
    if (fails(0)) return -1;
    remember(fd, to, 0, 1);
    return real_cut(fd, to);
}

static void before_sync(int fd) { (void)fd; }

static int on_sync(int (*real_sync)(int), int fd) {
    if (fails(1)) {
        int kept = errno;
        lose(file_of[fd]);
        errno = kept;
        return -1;
    }
    int done = real_sync(fd);
    if (done == 0) forget(file_of[fd]);
    return done;
}

#include "interpose.h"

/* Names: lost only as a failed call; their own cache is the replay's business. */
static int fails_at(const char *path) { return LOCKED(int, below(path) && fails(0)); }
int unlink(const char *path) { return fails_at(path) ? -1 : REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return fails_at(path) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return fails_at(from) ? -1 : REAL(rename)(from, to); }
