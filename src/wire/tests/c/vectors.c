/* The frozen bytes against holdfast_link.h: what a device says is written, what it is told is read.
 *
 * Takes the file of vectors; prints nothing and returns 0, or says which one is wrong.
 */
#define HOLDFAST_LINK_IMPLEMENTATION
#include "holdfast_link.h"

#include <stdio.h>
#include <stdlib.h>

#define KEY UINT64_C(0x00C0FFEE00000005)

static uint8_t in[HF_WIRE_BYTES(2048)], piece[1200], out[HF_WIRE_BYTES(2048)], wire[512];
static size_t wire_len;
static hf_device device;
static FILE *vectors;
static const uint8_t uid[8] = { 0x02, 0x00, 0x5E, 0x10, 0x00, 0x00, 0x00, 0x01 };
static const uint8_t blob[32] = {
    0xFF, 0xD8, 0xFF, 0xE0, 0x00, 0x10, 0x4A, 0x46, 0x49, 0x46, 0x00, 0x00, 0x0D, 0x1A, 0x27, 0x34,
    0x41, 0x4E, 0x5B, 0x68, 0x75, 0x82, 0x8F, 0x9C, 0xA9, 0xB6, 0xC3, 0xD0, 0xDD, 0xEA, 0xF7, 0x04
};
static const hf_blob blobs[1] = { { 9, 32, 0x448EC3F3u, 1 } };
static const char *const args[2] = { "Naht 7", "23.5" };

static void wrong(const char *what)
{
    fprintf(stderr, "wrong: %s\n", what);
    exit(1);
}

static void check(bool right, const char *what) { if (!right) wrong(what); }

static void load(const char *name)
{
    char text[1024];
    size_t len = strlen(name);
    rewind(vectors);
    while (fgets(text, sizeof text, vectors)) {
        unsigned byte;
        if (strncmp(text, name, len) != 0 || text[len] != ' ') continue;
        for (wire_len = 0; sscanf(text + len + 3 * wire_len, " %2x", &byte) == 1; wire_len++) wire[wire_len] = (uint8_t)byte;
        return;
    }
    wrong(name);
}

static bool request(void *user, uint64_t key, hf_request *r)
{
    (void)user;
    r->key = key;
    r->prio = 1;
    r->ttl_s = 86400;
    r->max_reply = 200;
    r->task = 12;
    r->args = args;
    r->arg_count = 2;
    r->blobs = blobs;
    r->blob_count = 1;
    return key == KEY;
}

static size_t picture(void *user, uint64_t key, uint32_t number, uint32_t off, uint8_t *into, size_t room)
{
    (void)user;
    if (key != KEY || number != 9 || off >= sizeof blob) return 0;
    if (room > sizeof blob - off) room = sizeof blob - off;
    memcpy(into, blob + off, room);
    return room;
}

static const hf_keeper keeper = { NULL, request, picture };

/* The next thing it says is this vector. */
static void says(const char *name, uint64_t now)
{
    size_t len = hf_poll(&device, &keeper, now, out, sizeof out);
    load(name);
    check(len == wire_len && memcmp(out, wire, len) == 0, name);
}

/* This vector is one event, at its last byte. */
static hf_event hears(const char *name, uint64_t now)
{
    hf_event e;
    load(name);
    for (size_t n = 0; n + 1 < wire_len; n++) check(hf_receive(&device, wire[n], now).kind == HF_EVENT_NONE, name);
    e = hf_receive(&device, wire[wire_len - 1], now);
    check(device.damaged == 0, name);
    return e;
}

static hf_identity identity(uint8_t addr)
{
    hf_identity id;
    memset(&id, 0, sizeof id);
    id.uid = uid; id.uid_len = sizeof uid;
    id.boot_id = 0x00C0FFEE;
    id.model = "cam-esp32"; id.fw = "1.4.2";
    id.caps = 3; id.addr = addr;
    id.max_frame = 1024; id.rx_credit = 2048;
    return id;
}

/* One request with its picture, from the first word to the result. */
static void conversation(void)
{
    hf_event e;
    hf_init(&device, identity(0), in, sizeof in, piece, sizeof piece, 0);
    says("hello", 0);
    e = hears("hello_ack", 0);
    check(e.kind == HF_EVENT_ONLINE && e.uplink == 2 && e.time == UINT64_C(1795200000000), "hello_ack's event");
    check(device.gw_boot == 7 && device.chunk == 960 && device.credit == 3840, "hello_ack's limits");
    check(hf_submit(&device, KEY, true, 0), "a place");
    says("submit", 0);
    hears("submit_ack_need", 0);
    says("chunk", 0);
    hears("chunk_ack", 0);
    check(device.upload.acked == 32 && device.upload.credit == 3840 && !device.upload.active, "chunk_ack's numbers");
    /* The repeat of the vector is marked as one; this device asks anew after an upload. */
    hf_find(&device, KEY)->repeat.sends = 1;
    says("submit_again", 0);
    e = hears("submit_ack_stored", 0);
    check(e.kind == HF_EVENT_STORED && e.key == KEY && e.outcome == 0 && e.req == 4711 && e.queue_pos == 3, "stored");
    check(hears("submit_ack_known", 0).kind == HF_EVENT_NONE, "known is told once");
    e = hears("nack", 0);
    check(e.key == 6 && e.code == HF_STORAGE_FULL && e.retry_ms == 30000 && e.text_len == 12, "nack's numbers");
    check(memcmp(e.text, "storage full", 12) == 0, "nack's text");
    e = hears("result", 0);
    check(e.kind == HF_EVENT_ANSWER && e.last && e.req == 4711 && e.key == KEY && e.status == 0, "result's event");
    check(e.source == 1 && e.answer_code == -2 && e.value == 0.5f && e.off == 0 && e.total == 9, "result's numbers");
    check(e.text_len == 9 && memcmp(e.text, "NIO: Pore", 9) == 0, "result's text");
    says("result_ack", 0);
    check(hf_cancel(&device, KEY, 0), "one cancel");
    device.tag = 6;
    says("cancel", 0);
}

static void ping_and_pong(void)
{
    hf_init(&device, identity(17), in, sizeof in, piece, sizeof piece, 0);
    device.session = true;
    device.gw_boot = 6;
    device.tag = 7;
    says("ping", 0xDEADBEEF);
    hears("pong", 0);
    check(!hf_is_online(&device), "another gw_boot ends the session");
}

/* Any run of bytes comes back as it went, and holds no zero on the way. */
static void stuffing(void)
{
    static const char patterns[] = "01rz";
    static uint8_t plain[1100];
    for (size_t len = 0; len <= sizeof plain; len++) {
        for (size_t p = 0; p < sizeof patterns - 1; p++) {
            hf_out o;
            size_t n, back;
            memset(&o, 0, sizeof o);
            o.out = out; o.room = sizeof out; o.run = 1;
            hf_raw(&o, 0);
            for (n = 0; n < len; n++) {
                plain[n] = patterns[p] == '0' ? 0 : patterns[p] == '1' ? 1 : (uint8_t)(n * 37 % 256);
                /* A zero at and around the longest run. */
                if (patterns[p] == 'z') plain[n] = (uint8_t)(n % 254 + (n / 254) % 2 == 254 - len % 3 ? 0 : 9);
                hf_stuff(&o, plain[n]);
            }
            out[o.code_at] = o.run;
            check(!o.full && o.len <= len + len / 254 + 1, "stuffed length");
            check(memchr(out, 0, o.len) == NULL, "a zero inside");
            back = hf_unstuff(out, o.len);
            check(back == len && memcmp(out, plain, len) == 0, "unstuffed");
        }
    }
}

/* Broken stuffing, frames that share a delimiter, frames that are too long: counted, never believed. */
static void damage(void)
{
    static const uint8_t broken[] = { 0x05, 0x01, 0x02, 0x00 };
    hf_init(&device, identity(0), in, 64, piece, sizeof piece, 0);
    for (size_t n = 0; n < sizeof broken; n++) hf_receive(&device, broken[n], 0);
    check(device.damaged == 1, "a run beyond the end");
    for (int n = 0; n < 100; n++) hf_receive(&device, 7, 0);
    hf_receive(&device, 0, 0);
    check(device.damaged == 2, "longer than the buffer");
    load("hello_ack");
    for (int round = 0; round < 2; round++)
        for (size_t n = 1; n < wire_len; n++) hf_receive(&device, wire[n], 0);
    check(device.damaged == 2 && hf_is_online(&device), "frames that share a delimiter");
    for (size_t flip = 1; flip + 1 < wire_len; flip++) {
        hf_line_lost(&device, 0);
        for (size_t n = 0; n < wire_len; n++) hf_receive(&device, (uint8_t)(wire[n] ^ (n == flip ? 0x10 : 0)), 0);
        check(!hf_is_online(&device), "a flipped byte is believed");
        hf_receive(&device, 0, 0);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2 || !(vectors = fopen(argv[1], "r"))) wrong("usage: vectors FILE");
    check(hf_crc32(0, (const uint8_t *)"123456789", 9) == 0xCBF43926u, "crc");
    conversation();
    ping_and_pong();
    stuffing();
    damage();
    fclose(vectors);
    return 0;
}
