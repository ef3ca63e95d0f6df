/* A slow disk: each fsync and fdatasync waits BENCH_FLUSH_MS before it does what it does.
 *
 * Flushes of several threads wait beside one another. Never touches sync_file_range, msync, syncfs or a write.
 * Works with a dynamically linked program only. Built by the bench: cc -shared -fPIC -O1 -o slow_flush.so slow_flush.c */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static struct timespec added;

__attribute__((constructor)) static void read_added(void) {
    const char *text = getenv("BENCH_FLUSH_MS");
    long ms = text ? atol(text) : 0;
    added.tv_sec = ms / 1000;
    added.tv_nsec = ms % 1000 * 1000000;
}

static void take_long(void) {
    struct timespec left = added;
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

int fsync(int fd) {
    take_long();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    take_long();
    return (int)syscall(SYS_fdatasync, fd);
}
