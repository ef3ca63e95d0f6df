/* A device behind two pipes: the test on the other side is its line, its gateway and its clock.
 *
 * Owns the memory that survives a restart; what it says is decided by holdfast_link.h alone. One command a line:
 *   keep KEY WANTS PICTURE   the memory holds this request, its picture in hexadecimal or "-"
 *   forget KEY               the memory gives it up
 *   start BOOT NOW           power on
 *   bus BOOT NOW             power on as number 17 of a bus, where it speaks only when polled
 *   submit KEY WANTS NOW
 *   turn NOW BYTES           bytes from the line, then whatever there is to send; answered by lines and a final "."
 */
#define HOLDFAST_LINK_IMPLEMENTATION
#include "holdfast_link.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define KEPT_MAX 64
#define PICTURE_MAX 4096
/* Frames in one turn. */
#define FRAMES_MAX 8

typedef struct { uint64_t key; bool wants; uint32_t len; uint8_t picture[PICTURE_MAX]; hf_blob blob; } kept;

static kept memory[KEPT_MAX];
static size_t count;
static hf_device device;
static uint8_t in[HF_WIRE_BYTES(1024)], piece[960], out[HF_WIRE_BYTES(1024)];
static char line[3 * HF_WIRE_BYTES(4096)];

static kept *find(uint64_t key)
{
    for (size_t n = 0; n < count; n++)
        if (memory[n].key == key) return &memory[n];
    return NULL;
}

static bool request(void *user, uint64_t key, hf_request *r)
{
    kept *k = find(key);
    (void)user;
    if (!k) return false;
    r->key = key;
    r->flags = k->wants ? 0 : HF_NO_RESULT;
    r->task = 1;
    r->blobs = &k->blob;
    r->blob_count = k->len > 0;
    return true;
}

static size_t picture(void *user, uint64_t key, uint32_t blob, uint32_t off, uint8_t *into, size_t room)
{
    kept *k = find(key);
    (void)user;
    (void)blob;
    if (!k || off >= k->len) return 0;
    if (room > k->len - off) room = k->len - off;
    memcpy(into, k->picture + off, room);
    return room;
}

static size_t unhex(const char *text, uint8_t *into, size_t room)
{
    size_t len = 0;
    unsigned byte;
    if (text[0] == '-') return 0;
    while (len < room && sscanf(text + 2 * len, "%2x", &byte) == 1) into[len++] = (uint8_t)byte;
    return len;
}

static void hex(const char *word, const uint8_t *bytes, size_t len)
{
    printf("%s", word);
    for (size_t n = 0; n < len; n++) printf("%02x", bytes[n]);
    putchar('\n');
}

static void keep(uint64_t key, bool wants, const char *bytes)
{
    kept *k = &memory[count++];
    k->key = key;
    k->wants = wants;
    k->len = (uint32_t)unhex(bytes, k->picture, PICTURE_MAX);
    k->blob.blob = (uint32_t)key;
    k->blob.len = k->len;
    k->blob.crc32 = hf_crc32(0, k->picture, k->len);
    k->blob.mime = 1;
}

static void forget(uint64_t key)
{
    kept *k = find(key);
    if (k) *k = memory[--count];
}

static void start(uint32_t boot, uint8_t addr, uint64_t now)
{
    hf_identity id;
    memset(&id, 0, sizeof id);
    id.uid = (const uint8_t *)"device-1";
    id.uid_len = 8;
    id.boot_id = boot;
    id.model = "test";
    id.fw = "1";
    id.max_frame = 256;
    id.rx_credit = 512;
    id.frame_ms = 20;
    id.addr = addr;
    id.polled = addr != 0;
    hf_init(&device, id, in, sizeof in, piece, sizeof piece, now);
}

static void told(const hf_event *e)
{
    if (e->kind == HF_EVENT_STORED) printf("stored %" PRIu64 "\n", e->key);
    if (e->kind == HF_EVENT_GONE) printf("gone %" PRIu64 "\n", e->key);
    if (e->kind == HF_EVENT_REFUSED) printf("refused %" PRIu64 "\n", e->key);
    if (e->kind == HF_EVENT_ANSWER) {
        printf("answer %" PRIu64 " %d ", e->key, e->last);
        hex("-", e->text, e->text_len);
    }
}

static void turn(uint64_t now, const char *bytes)
{
    static uint8_t got[sizeof line / 2];
    hf_keeper keeper = { NULL, request, picture };
    size_t len = unhex(bytes, got, sizeof got);
    for (size_t n = 0; n < len; n++) {
        hf_event e = hf_receive(&device, got[n], now);
        told(&e);
    }
    for (int n = 0; n < FRAMES_MAX && (len = hf_poll(&device, &keeper, now, out, sizeof out)) > 0; n++)
        hex("send ", out, len);
    puts(".");
    fflush(stdout);
}

int main(void)
{
    static char bytes[sizeof line];
    uint64_t a, b, now;
    printf("state %zu\n", sizeof device);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "keep %" SCNu64 " %" SCNu64 " %s", &a, &b, bytes) == 3 && count < KEPT_MAX) keep(a, b != 0, bytes);
        else if (sscanf(line, "forget %" SCNu64, &a) == 1) forget(a);
        else if (sscanf(line, "start %" SCNu64 " %" SCNu64, &a, &now) == 2) start((uint32_t)a, 0, now);
        else if (sscanf(line, "bus %" SCNu64 " %" SCNu64, &a, &now) == 2) start((uint32_t)a, 17, now);
        else if (sscanf(line, "submit %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &now) == 3) hf_submit(&device, a, b != 0, now);
        else if (sscanf(line, "turn %" SCNu64 " %s", &now, bytes) == 2) turn(now, bytes);
        else return 2;
    }
    return 0;
}
