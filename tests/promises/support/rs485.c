/* A serial driver that knows TIOCSRS485, between a program and a pseudo-terminal, which does not. RS485_DRIVER: "keeps" takes
 * the setting with a delay of its own, "forgets" takes it and keeps nothing. Each setting is written to RS485_LOG as it came.
 * Built by the test: cc -shared -fPIC -o rs485.so rs485.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/serial.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct serial_rs485 kept;

static void note(const struct serial_rs485 *set) {
    char line[64];
    int n = snprintf(line, sizeof line, "enabled %u\n", set->flags & SER_RS485_ENABLED);
    int log = open(getenv("RS485_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (log >= 0 && write(log, line, n) >= 0) close(log);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    const char *driver = getenv("RS485_DRIVER");
    if (driver && request == TIOCSRS485) {
        note(argument);
        memset(&kept, 0, sizeof kept);
        if (strcmp(driver, "keeps") == 0) {
            kept = *(struct serial_rs485 *)argument;
            kept.delay_rts_after_send = 3;
        }
        return 0;
    }
    if (driver && request == TIOCGRS485) {
        *(struct serial_rs485 *)argument = kept;
        return 0;
    }
    int (*real)(int, unsigned long, void *) = dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
}
