/* A first device in C: one question over a serial port, its answer on the screen.
 *
 *     cc -std=c99 -o example example.c
 *     ./example /dev/ttyUSB0 "Bearing 7 is at 71 C. Normal?"
 *
 * On a microcontroller only open_port, millis, read and write are different. This one keeps its request in RAM: if it
 * is switched off before the gateway has it on disk, the request is gone. See README.md beside the crate for keys that
 * survive a restart.
 */
#define _DEFAULT_SOURCE
#define HOLDFAST_LINK_IMPLEMENTATION
#include "holdfast_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* The gateway's own default. */
#define BAUD B115200
#define GIVE_UP_MS 60000

static const char *question;

static uint64_t millis(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool request(void *user, uint64_t key, hf_request *r)
{
    (void)user;
    r->key = key;
    r->op = 1; /* a prompt of our own; 0 and r->task for one of the gateway's */
    r->user = question;
    return true;
}

static size_t no_picture(void *user, uint64_t key, uint32_t blob, uint32_t off, uint8_t *into, size_t room)
{
    (void)user; (void)key; (void)blob; (void)off; (void)into; (void)room;
    return 0;
}

static int open_port(const char *path)
{
    struct termios settings;
    int port = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (port < 0 || tcgetattr(port, &settings) < 0) return -1;
    /* Every byte as it is: frames contain XON, XOFF and everything else. */
    cfmakeraw(&settings);
    settings.c_cflag |= CLOCAL | CREAD;
    cfsetispeed(&settings, BAUD);
    cfsetospeed(&settings, BAUD);
    return tcsetattr(port, TCSANOW, &settings) < 0 ? -1 : port;
}

static bool send_all(int port, const uint8_t *bytes, size_t len)
{
    while (len > 0) {
        ssize_t written = write(port, bytes, len);
        if (written < 0 && errno != EAGAIN && errno != EINTR) return false;
        if (written > 0) { bytes += written; len -= (size_t)written; }
        else { struct pollfd until = { port, POLLOUT, 0 }; poll(&until, 1, 100); }
    }
    return true;
}

/* Tells what happened; true at the end. */
static bool told(const hf_event *e)
{
    if (e->kind == HF_EVENT_ONLINE) fprintf(stderr, "gateway: %s\n", e->uplink == 2 ? "online" : "no uplink now");
    if (e->kind == HF_EVENT_STORED) fprintf(stderr, "on the gateway's disk as request %lu\n", (unsigned long)e->req);
    if (e->kind == HF_EVENT_REFUSED) fprintf(stderr, "refused, code %u: %.*s\n", (unsigned)e->code, (int)e->text_len, (const char *)e->text);
    if (e->kind == HF_EVENT_GONE) fprintf(stderr, "finished, the result is not kept any more\n");
    if (e->kind == HF_EVENT_ANSWER) printf("%.*s%s", (int)e->text_len, (const char *)e->text, e->last ? "\n" : "");
    return e->kind == HF_EVENT_REFUSED || e->kind == HF_EVENT_GONE || (e->kind == HF_EVENT_ANSWER && e->last);
}

int main(int argc, char **argv)
{
    static uint8_t in[HF_WIRE_BYTES(1024)], out[HF_WIRE_BYTES(1024)], piece[960];
    static hf_device device;
    hf_keeper keeper = { NULL, request, no_picture };
    hf_identity id;
    uint64_t began = millis();
    bool done = false;
    int port;
    if (argc != 3) { fprintf(stderr, "usage: example PORT QUESTION\n"); return 2; }
    port = open_port(argv[1]);
    if (port < 0) { perror(argv[1]); return 1; }
    question = argv[2];
    memset(&id, 0, sizeof id);
    id.uid = (const uint8_t *)"example1";
    id.uid_len = 8;
    id.boot_id = (uint32_t)time(NULL); /* another number after each start */
    id.model = "example"; id.fw = "1";
    id.max_frame = 1024; id.rx_credit = 4096;
    id.frame_ms = 90; /* 1024 bytes at 115,200 baud */
    hf_init(&device, id, in, sizeof in, piece, sizeof piece, millis());
    hf_submit(&device, (uint64_t)id.boot_id << 32 | 1, true, millis());
    while (millis() - began < GIVE_UP_MS) {
        struct pollfd until = { port, POLLIN, 0 };
        uint8_t bytes[256];
        ssize_t got;
        size_t len;
        while ((len = hf_poll(&device, &keeper, millis(), out, sizeof out)) > 0)
            if (!send_all(port, out, len)) return 1;
        if (done) return 0; /* the acknowledgement of the answer is out */
        poll(&until, 1, 20);
        got = read(port, bytes, sizeof bytes);
        for (ssize_t n = 0; n < got; n++) {
            hf_event e = hf_receive(&device, bytes[n], millis());
            done = told(&e) || done;
        }
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) { fprintf(stderr, "the port is gone\n"); return 1; }
    }
    fprintf(stderr, "no answer within a minute\n");
    return 1;
}
