/* holdfast_link.h - the device's side of the holdfast link, version 1, for C99.
 *
 * One header, no heap, no dependency. In one source file of yours:
 *
 *     #define HOLDFAST_LINK_IMPLEMENTATION
 *     #include "holdfast_link.h"
 *
 * Give it the bytes from the port (hf_receive), send what it writes (hf_poll), tell it the time in milliseconds.
 * Your program keeps its requests and pictures and shows them through two callbacks; they are kept until the gateway
 * has them on disk, and each answer is handed over once.
 *
 * Owns sessions, repeats, uploads and acknowledgements. Reads no clock and touches no port.
 *
 * Licence: Apache-2.0 OR MIT.
 */
#ifndef HOLDFAST_LINK_H
#define HOLDFAST_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Unfinished requests at once; a gateway allows up to 32. */
#ifndef HF_OPEN_MAX
#define HF_OPEN_MAX 4
#endif
/* Answers whose acknowledgement waits to be sent; what is not acknowledged comes again. */
#define HF_ACKS_MAX 4

#define HF_PROTOCOL 1
#define HF_BROADCAST 255

/* Types of messages. */
enum {
    HF_HELLO = 0x01, HF_HELLO_ACK = 0x02, HF_SUBMIT = 0x10, HF_SUBMIT_ACK = 0x11, HF_NACK = 0x12,
    HF_CHUNK = 0x20, HF_CHUNK_ACK = 0x21, HF_RESULT = 0x30, HF_RESULT_ACK = 0x31, HF_PROGRESS = 0x32,
    HF_QUERY = 0x33, HF_CANCEL = 0x40, HF_CANCEL_ACK = 0x41, HF_PING = 0x50, HF_PONG = 0x51,
    HF_TIME_REQ = 0x52, HF_TIME_RESP = 0x53, HF_POLL = 0x60, HF_IDLE = 0x61
};

/* Why the gateway says no. */
enum {
    HF_BAD_PAYLOAD = 1, HF_VERSION = 2, HF_UNKNOWN = 3, HF_NO_SESSION = 4, HF_TOO_LARGE = 5, HF_BUSY = 6,
    HF_STORAGE_FULL = 7, HF_UNKNOWN_KEY = 8, HF_UNKNOWN_TASK = 9, HF_BAD_ARGUMENTS = 10, HF_KEY_REUSED = 11,
    HF_EXPIRED = 12, HF_RATE_LIMITED = 13, HF_FORBIDDEN = 14, HF_BLOB_CHECKSUM = 15, HF_INTERNAL = 16
};

/* Flags of a request. */
enum { HF_NO_RESULT = 1, HF_LOCAL_ONLY = 2, HF_UPLINK_ONLY = 4 };

/* A picture that belongs to a request. mime: 1 JPEG, 2 PNG, 3 WebP. */
typedef struct { uint32_t blob, len, crc32; uint8_t mime; } hf_blob;

/* A request: a task of the gateway's configuration, or a prompt of the device's own. Strings end with 0. */
typedef struct {
    uint64_t key;         /* names this request for ever; never again with other content */
    uint8_t prio;         /* 0 critical .. 3 low */
    uint32_t ttl_s;       /* 0: the gateway's default */
    uint8_t flags;        /* HF_NO_RESULT and so on */
    uint16_t max_reply;   /* longest text of the result, 0: the gateway's limit */
    uint8_t op;           /* 0 task, 1 chat */
    uint16_t task;        /* op 0 */
    const char *const *args; /* op 0, up to 16 of up to 240 bytes */
    uint8_t arg_count;
    const char *model, *system, *user; /* op 1; model and system may be "" */
    uint16_t max_tokens;  /* op 1; 0: the model's own limit */
    const hf_blob *blobs;
    uint8_t blob_count;   /* up to 4 */
} hf_request;

/* Where requests and pictures are kept: in RAM, in flash, on a card. Both are asked again for every repeat. */
typedef struct {
    void *user;
    /* Fills in the request of this key; false where the firmware gave it up. */
    bool (*request)(void *user, uint64_t key, hf_request *out);
    /* Copies up to `room` bytes of a picture from `off` on; returns how many. */
    size_t (*picture)(void *user, uint64_t key, uint32_t blob, uint32_t off, uint8_t *into, size_t room);
} hf_keeper;

/* Who the device is, and its line. */
typedef struct {
    const uint8_t *uid; uint8_t uid_len; /* its own name for ever, 4 to 16 bytes */
    uint32_t boot_id;                    /* another number after each start */
    const char *model, *fw;
    uint32_t caps;
    const uint8_t *token; uint16_t token_len; /* a shared secret; NULL for none */
    uint8_t addr;                        /* 0 point to point, 1 to 247 on RS-485 */
    uint16_t max_frame;                  /* largest frame it takes, 64 to 4096 */
    uint16_t rx_credit;                  /* bytes of its receive buffer */
    uint32_t frame_ms;                   /* milliseconds that such a frame takes on this line */
    bool polled;                         /* RS-485: speaks only when polled */
} hf_identity;

/* What happened. */
typedef enum {
    HF_EVENT_NONE, HF_EVENT_ONLINE, HF_EVENT_STORED, HF_EVENT_REFUSED, HF_EVENT_ANSWER, HF_EVENT_PROGRESS,
    HF_EVENT_CANCELLED, HF_EVENT_TIME,
    HF_EVENT_GONE /* the gateway finished it, and its result is not kept any more: the request may be forgotten */
} hf_event_kind;

/* `text` points into the receive buffer: copy it before the next call of hf_receive. */
typedef struct {
    hf_event_kind kind;
    uint64_t key, req;
    uint8_t status, source, state, outcome, uplink, quality;
    uint16_t code, queue_pos, eta_s;
    int32_t answer_code;
    float value;
    uint32_t retry_ms, off, total;
    uint64_t time;        /* ONLINE: Unix ms, 0 unknown. TIME: the gateway's time when it answered, Unix us */
    const uint8_t *text;
    uint32_t text_len;
    bool last;            /* ANSWER: nothing follows, the request may be forgotten */
} hf_event;

typedef struct { uint64_t due_ms; uint32_t wait_ms; uint8_t sends; } hf_repeat;
typedef struct { uint64_t key; uint32_t next; uint8_t stage; bool wants_result; hf_repeat repeat; } hf_open;
typedef struct {
    uint64_t key; uint32_t blob, len, acked, sent, credit;
    bool active, len_known, went_back; hf_repeat repeat;
} hf_upload;

/* One device on one line. Treat as opaque. */
typedef struct {
    hf_identity id;
    uint8_t *in; size_t in_size, in_len; bool in_too_long, in_done;
    uint8_t *piece; size_t piece_size;
    bool session; uint32_t gw_boot; uint16_t chunk, credit;
    hf_repeat hello, ping;
    hf_open open[HF_OPEN_MAX];
    hf_upload upload;
    struct { uint64_t key; uint32_t next; uint8_t tag; } acks[HF_ACKS_MAX]; uint8_t ack_count;
    uint64_t cancel_key; hf_repeat cancel; bool cancelling;
    uint32_t pong_nonce; uint8_t pong_tag; bool pong;
    uint32_t may_send, chance, damaged;
    uint8_t tag;
} hf_device;

/* Bytes on the wire for a frame of so many bytes, delimiters included. */
#define HF_WIRE_BYTES(frame) ((frame) + (frame) / 254 + 3)

/* `in` holds HF_WIRE_BYTES(max_frame) bytes, `piece` the bytes of one chunk of a picture. */
void hf_init(hf_device *d, hf_identity id, uint8_t *in, size_t in_size, uint8_t *piece, size_t piece_size,
             uint64_t now_ms);
/* Takes over a request; false: no place, wait until one is finished. After a start, also each unfinished one. */
bool hf_submit(hf_device *d, uint64_t key, bool wants_result, uint64_t now_ms);
/* Asks the gateway not to answer this request any more; one at a time. */
bool hf_cancel(hf_device *d, uint64_t key, uint64_t now_ms);
/* Takes one byte from the port. */
hf_event hf_receive(hf_device *d, uint8_t byte, uint64_t now_ms);
/* Writes the next frame to send and returns its length, 0 for none. Call it until it says 0. */
size_t hf_poll(hf_device *d, const hf_keeper *k, uint64_t now_ms, uint8_t *out, size_t room);
/* The line was closed or fell silent in the middle of a frame. */
void hf_line_lost(hf_device *d, uint64_t now_ms);
bool hf_is_online(const hf_device *d);
/* zlib's CRC-32: begin with 0, go on with what came before. */
uint32_t hf_crc32(uint32_t crc, const uint8_t *bytes, size_t len);

#ifdef HOLDFAST_LINK_IMPLEMENTATION

#include <string.h>

/* See the Rust crate beside this file for the reasons of these numbers. */
#define HF_WAIT_MAX_MS 8000u
#define HF_PING_EVERY_MS 30000u
#define HF_PINGS_MAX 3
#define HF_ROUNDS_MAX 4
#define HF_ANSWER_MS 300u
#define HF_STORE_MS 2000u
#define HF_BUSY_MS 2000u
#define HF_QUERIES_MAX 3
#define HF_STATE_DONE 4

enum { HF_FREE, HF_SUBMITTING, HF_UPLOADING, HF_STORED, HF_ASKING };

uint32_t hf_crc32(uint32_t crc, const uint8_t *bytes, size_t len)
{
    crc = ~crc;
    while (len--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* ---- timers ---- */

static hf_repeat hf_now(uint64_t now_ms)
{
    hf_repeat r = { now_ms, 0, 0 };
    return r;
}

static bool hf_due(const hf_repeat *r, uint64_t now_ms) { return now_ms >= r->due_ms; }

/* It is being sent now; next time after `first_ms`, then twice that, with a quarter more or less. */
static void hf_sent(hf_device *d, hf_repeat *r, uint64_t now_ms, uint32_t first_ms)
{
    uint32_t quarter;
    r->wait_ms = r->wait_ms == 0 ? first_ms : r->wait_ms * 2 < HF_WAIT_MAX_MS ? r->wait_ms * 2 : HF_WAIT_MAX_MS;
    /* Xorshift, 32 bits (G. Marsaglia, "Xorshift RNGs", 2003). */
    d->chance ^= d->chance << 13;
    d->chance ^= d->chance >> 17;
    d->chance ^= d->chance << 5;
    quarter = r->wait_ms / 4;
    r->due_ms = now_ms + r->wait_ms - quarter + (((uint64_t)quarter * 2 * (d->chance & 0xFFFFu)) >> 16);
    if (r->sends < 255) r->sends++;
}

static uint32_t hf_wait_ms(const hf_device *d) { return d->id.frame_ms * 3 + HF_ANSWER_MS; }

/* ---- writing: COBS and CRC on the way ---- */

typedef struct { uint8_t *out; size_t room, len, code_at; uint8_t run; uint32_t crc; bool full; } hf_out;

static void hf_raw(hf_out *o, uint8_t byte)
{
    if (o->len < o->room) o->out[o->len++] = byte; else o->full = true;
}

static void hf_stuff(hf_out *o, uint8_t byte)
{
    if (byte != 0) { hf_raw(o, byte); o->run++; }
    if (byte == 0 || o->run == 0xFF) {
        if (o->code_at < o->room) o->out[o->code_at] = o->run;
        o->code_at = o->len;
        o->run = 1;
        hf_raw(o, 0);
    }
}

static void hf_put(hf_out *o, uint8_t byte)
{
    o->crc = hf_crc32(o->crc, &byte, 1);
    hf_stuff(o, byte);
}

static void hf_put_varint(hf_out *o, uint64_t value)
{
    while (value >= 0x80) { hf_put(o, (uint8_t)(value | 0x80)); value >>= 7; }
    hf_put(o, (uint8_t)value);
}

static void hf_put_bytes(hf_out *o, const void *bytes, size_t len)
{
    const uint8_t *at = (const uint8_t *)bytes;
    hf_put_varint(o, len);
    while (len--) hf_put(o, *at++);
}

static void hf_put_text(hf_out *o, const char *text) { hf_put_bytes(o, text ? text : "", text ? strlen(text) : 0); }

static void hf_begin(hf_device *d, hf_out *o, uint8_t *out, size_t room, uint8_t kind, bool repeat, int reply_to)
{
    memset(o, 0, sizeof *o);
    o->out = out; o->room = room; o->run = 1;
    hf_raw(o, 0);
    o->code_at = o->len;
    hf_raw(o, 0);
    hf_put(o, (uint8_t)(HF_PROTOCOL << 4 | (repeat ? 4 : 0)));
    hf_put(o, d->id.addr);
    hf_put(o, kind);
    hf_put(o, (uint8_t)d->id.boot_id);
    if (reply_to < 0) d->tag++;
    hf_put(o, reply_to < 0 ? d->tag : (uint8_t)reply_to);
}

/* A message that does not fit is not sent at all. */
static size_t hf_end(hf_out *o)
{
    uint32_t crc = o->crc;
    for (int n = 0; n < 4; n++) hf_stuff(o, (uint8_t)(crc >> (8 * n)));
    if (o->code_at < o->room) o->out[o->code_at] = o->run;
    hf_raw(o, 0);
    return o->full ? 0 : o->len;
}

/* ---- reading: a missing tail reads as 0, what is longer is ignored ---- */

typedef struct { const uint8_t *at; size_t left; bool bad; } hf_in;

static uint8_t hf_get(hf_in *i)
{
    if (i->left == 0) return 0;
    i->left--;
    return *i->at++;
}

static uint64_t hf_get_varint(hf_in *i)
{
    uint64_t value = 0;
    if (i->left == 0) return 0;
    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t byte;
        if (i->left == 0) break;
        byte = hf_get(i);
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
    i->bad = true;
    return 0;
}

static const uint8_t *hf_get_bytes(hf_in *i, uint32_t *len)
{
    const uint8_t *bytes;
    uint64_t wanted = hf_get_varint(i);
    if (wanted > i->left) { i->bad = true; wanted = 0; }
    bytes = i->at;
    *len = (uint32_t)wanted;
    i->at += wanted;
    i->left -= (size_t)wanted;
    return bytes;
}

static size_t hf_unstuff(uint8_t *bytes, size_t len)
{
    size_t from = 0, to = 0;
    while (from < len) {
        uint8_t code = bytes[from++];
        if (code == 0 || from + code - 1 > len) return 0;
        for (uint8_t n = 1; n < code; n++) bytes[to++] = bytes[from++];
        if (code != 0xFF && from < len) bytes[to++] = 0;
    }
    return to;
}

/* ---- requests ---- */

static hf_open *hf_find(hf_device *d, uint64_t key)
{
    for (int n = 0; n < HF_OPEN_MAX; n++)
        if (d->open[n].stage != HF_FREE && d->open[n].key == key) return &d->open[n];
    return NULL;
}

static void hf_enter(hf_open *o, uint8_t stage, uint64_t now_ms)
{
    o->stage = stage;
    o->repeat = hf_now(now_ms);
}

static void hf_end_upload(hf_device *d, uint64_t now_ms)
{
    d->upload.active = false;
    for (int n = 0; n < HF_OPEN_MAX; n++)
        if (d->open[n].stage == HF_UPLOADING) hf_enter(&d->open[n], HF_SUBMITTING, now_ms);
}

static void hf_finish(hf_device *d, uint64_t key, uint64_t now_ms)
{
    hf_open *o = hf_find(d, key);
    if (o) o->stage = HF_FREE;
    if (d->upload.active && d->upload.key == key) hf_end_upload(d, now_ms);
}

static void hf_lose_session(hf_device *d, uint64_t now_ms)
{
    d->session = false;
    d->hello = hf_now(now_ms);
}

void hf_init(hf_device *d, hf_identity id, uint8_t *in, size_t in_size, uint8_t *piece, size_t piece_size,
             uint64_t now_ms)
{
    memset(d, 0, sizeof *d);
    d->id = id;
    d->in = in; d->in_size = in_size;
    d->piece = piece; d->piece_size = piece_size;
    d->hello = hf_now(now_ms);
    d->ping = hf_now(now_ms + HF_PING_EVERY_MS);
    d->chance = id.boot_id | 1;
}

bool hf_submit(hf_device *d, uint64_t key, bool wants_result, uint64_t now_ms)
{
    if (hf_find(d, key)) return true;
    for (int n = 0; n < HF_OPEN_MAX; n++) {
        hf_open *o = &d->open[n];
        if (o->stage != HF_FREE) continue;
        memset(o, 0, sizeof *o);
        o->key = key;
        o->wants_result = wants_result;
        hf_enter(o, HF_SUBMITTING, now_ms);
        return true;
    }
    return false;
}

bool hf_cancel(hf_device *d, uint64_t key, uint64_t now_ms)
{
    if (d->cancelling && d->cancel_key != key) return false;
    d->cancelling = true;
    d->cancel_key = key;
    d->cancel = hf_now(now_ms);
    return true;
}

void hf_line_lost(hf_device *d, uint64_t now_ms)
{
    d->in_len = 0;
    d->in_too_long = d->in_done = false;
    hf_lose_session(d, now_ms);
}

bool hf_is_online(const hf_device *d) { return d->session; }

/* ---- what the gateway says ---- */

static void hf_acknowledge(hf_device *d, uint64_t key, uint32_t next, uint8_t tag)
{
    if (d->ack_count == HF_ACKS_MAX)
        memmove(&d->acks[0], &d->acks[1], sizeof d->acks[0] * (size_t)--d->ack_count);
    d->acks[d->ack_count].key = key;
    d->acks[d->ack_count].next = next;
    d->acks[d->ack_count++].tag = tag;
}

static void hf_wanted(hf_device *d, hf_open *o, uint32_t blob, uint32_t off, uint64_t now_ms)
{
    hf_upload *u = &d->upload;
    bool busy = u->active && (u->key != o->key || (u->blob == blob && u->sent > u->acked));
    hf_enter(o, HF_UPLOADING, now_ms);
    if (busy) return;
    memset(u, 0, sizeof *u);
    u->active = true;
    u->key = o->key; u->blob = blob;
    u->acked = u->sent = off;
    u->credit = d->credit;
    u->repeat = hf_now(now_ms);
}

static void hf_on_submit_ack(hf_device *d, hf_in *i, hf_event *e, uint64_t now_ms)
{
    uint32_t blob = 0, off = 0;
    uint8_t stage;
    bool need;
    hf_open *o;
    e->key = hf_get_varint(i);
    e->outcome = hf_get(i);
    e->req = hf_get_varint(i);
    e->queue_pos = (uint16_t)hf_get_varint(i);
    need = hf_get(i) == 1;
    if (need) { blob = (uint32_t)hf_get_varint(i); off = (uint32_t)hf_get_varint(i); }
    o = hf_find(d, e->key);
    if (i->bad || !o || !d->session) return;
    if (e->outcome == 1) {
        if (need) hf_wanted(d, o, blob, off, now_ms);
        return;
    }
    if (e->outcome > 3) return;
    stage = e->outcome == 3 ? HF_ASKING : HF_STORED;
    if (o->stage != stage) { e->kind = HF_EVENT_STORED; hf_enter(o, stage, now_ms); }
    if (!o->wants_result) hf_finish(d, e->key, now_ms);
}

static void hf_on_nack(hf_device *d, hf_in *i, hf_event *e, uint64_t now_ms)
{
    hf_open *o;
    hf_get(i);
    e->key = hf_get_varint(i);
    e->code = (uint16_t)hf_get_varint(i);
    e->retry_ms = (uint32_t)hf_get_varint(i);
    e->text = hf_get_bytes(i, &e->text_len);
    if (i->bad) return;
    if (e->code == HF_NO_SESSION) { hf_lose_session(d, now_ms); return; }
    if (e->code == HF_VERSION || (e->code == HF_FORBIDDEN && !d->session)) {
        d->hello.due_ms = now_ms + (e->retry_ms > HF_BUSY_MS ? e->retry_ms : HF_BUSY_MS);
        d->hello.wait_ms = 0;
        e->kind = HF_EVENT_REFUSED;
        return;
    }
    o = hf_find(d, e->key);
    if (!o) return;
    if (e->code == HF_UNKNOWN_KEY) { /* what is being submitted was asked for before: an answer that comes late */
        if (o->stage == HF_STORED || o->stage == HF_ASKING) hf_enter(o, HF_SUBMITTING, now_ms);
        return;
    }
    switch (e->code) {
    case HF_BUSY: case HF_STORAGE_FULL: case HF_RATE_LIMITED: case HF_INTERNAL: case HF_BLOB_CHECKSUM:
        hf_enter(o, HF_SUBMITTING, now_ms);
        o->repeat.due_ms = now_ms + (e->retry_ms ? e->retry_ms : HF_BUSY_MS);
        if (d->upload.active && d->upload.key == e->key) hf_end_upload(d, now_ms);
        return;
    default:
        hf_finish(d, e->key, now_ms);
        e->kind = HF_EVENT_REFUSED;
    }
}

static void hf_on_chunk_ack(hf_device *d, hf_in *i, uint64_t now_ms)
{
    hf_upload *u = &d->upload;
    uint32_t blob = (uint32_t)hf_get_varint(i), next = (uint32_t)hf_get_varint(i);
    uint16_t credit = (uint16_t)hf_get_varint(i);
    if (i->bad || !u->active || u->blob != blob) return;
    if (u->len_known && next > u->len) next = u->len;
    u->credit = credit;
    if (next < u->acked) {
        u->sent = next; u->went_back = false;
    } else if (next > u->acked) {
        if (u->sent < next) u->sent = next;
        u->went_back = false;
    } else if (!u->went_back && u->sent > next) {
        u->sent = next; u->went_back = true; /* a piece was lost: all behind it is of no use */
    }
    u->acked = next;
    u->repeat = hf_now(now_ms);
    if (u->len_known && u->acked >= u->len) hf_end_upload(d, now_ms);
}

static void hf_on_result(hf_device *d, hf_in *i, hf_event *e, uint8_t tag, uint64_t now_ms)
{
    uint64_t zigzag;
    uint32_t bits = 0;
    hf_open *o;
    e->req = hf_get_varint(i);
    e->key = hf_get_varint(i);
    e->status = hf_get(i);
    e->source = hf_get(i);
    zigzag = hf_get_varint(i);
    e->answer_code = (int32_t)((uint32_t)(zigzag >> 1) ^ (0u - (uint32_t)(zigzag & 1)));
    if (i->left > 0 && i->left < 4) return;
    for (int n = 0; n < 4; n++) bits |= (uint32_t)hf_get(i) << (8 * n);
    memcpy(&e->value, &bits, sizeof bits);
    e->off = (uint32_t)hf_get_varint(i);
    e->total = (uint32_t)hf_get_varint(i);
    e->text = hf_get_bytes(i, &e->text_len);
    if (i->bad) return;
    o = hf_find(d, e->key);
    if (!o) { hf_acknowledge(d, e->key, e->total, tag); return; }
    if (e->off != o->next) { hf_acknowledge(d, e->key, o->next, tag); return; }
    o->next += e->text_len;
    o->stage = HF_STORED;
    e->kind = HF_EVENT_ANSWER;
    e->last = o->next >= e->total;
    hf_acknowledge(d, e->key, e->last ? e->total : o->next, tag);
    if (e->last) hf_finish(d, e->key, now_ms);
}

/* Finished, and asked for often enough without a result: there is none any more. */
static void hf_on_progress(hf_device *d, hf_event *e, uint64_t now_ms)
{
    hf_open *o = hf_find(d, e->key);
    e->kind = HF_EVENT_PROGRESS;
    if (e->state < HF_STATE_DONE || !o || o->stage != HF_ASKING || o->repeat.sends < HF_QUERIES_MAX) return;
    hf_finish(d, e->key, now_ms);
    e->kind = HF_EVENT_GONE;
}

static void hf_on_frame(hf_device *d, const uint8_t *frame, size_t len, hf_event *e, uint64_t now_ms)
{
    hf_in i = { frame + 5, len - 5, false };
    uint8_t tag = frame[4];
    bool mine = frame[1] == d->id.addr || frame[1] == HF_BROADCAST;
    /* A gateway that polls may not have heard of this device yet, or of its last start. */
    bool current = frame[3] == (uint8_t)d->id.boot_id || frame[2] == HF_POLL;
    /* Its own echo, somebody else's, or an answer to what it was before its last start. */
    if (!(frame[0] & 8) || !mine || !current) return;
    d->ping = hf_now(now_ms + HF_PING_EVERY_MS);
    switch (frame[2]) {
    case HF_HELLO_ACK:
        hf_get(&i);
        d->gw_boot = (uint32_t)hf_get_varint(&i);
        hf_get_varint(&i);
        d->chunk = (uint16_t)hf_get_varint(&i);
        d->credit = (uint16_t)hf_get_varint(&i);
        hf_get_varint(&i);
        hf_get_varint(&i);
        e->uplink = hf_get(&i);
        e->time = hf_get_varint(&i);
        if (i.bad) return;
        d->session = true;
        d->upload.active = false;
        for (int n = 0; n < HF_OPEN_MAX; n++)
            if (d->open[n].stage != HF_FREE) hf_enter(&d->open[n], HF_SUBMITTING, now_ms);
        e->kind = HF_EVENT_ONLINE;
        return;
    case HF_SUBMIT_ACK: hf_on_submit_ack(d, &i, e, now_ms); return;
    case HF_NACK: hf_on_nack(d, &i, e, now_ms); return;
    case HF_CHUNK_ACK: hf_on_chunk_ack(d, &i, now_ms); return;
    case HF_RESULT: hf_on_result(d, &i, e, tag, now_ms); return;
    case HF_PROGRESS:
        e->key = hf_get_varint(&i);
        e->state = hf_get(&i);
        e->queue_pos = (uint16_t)hf_get_varint(&i);
        e->eta_s = (uint16_t)hf_get_varint(&i);
        if (!i.bad) hf_on_progress(d, e, now_ms);
        return;
    case HF_CANCEL_ACK:
        e->key = hf_get_varint(&i);
        e->outcome = hf_get(&i);
        if (i.bad) return;
        if (d->cancel_key == e->key) d->cancelling = false;
        e->kind = HF_EVENT_CANCELLED;
        return;
    case HF_PING:
        d->pong_nonce = (uint32_t)hf_get_varint(&i);
        d->pong_tag = tag;
        d->pong = !i.bad;
        return;
    case HF_PONG: {
        uint32_t boot;
        hf_get_varint(&i);
        boot = (uint32_t)hf_get_varint(&i);
        if (!i.bad && d->session && boot != d->gw_boot) hf_lose_session(d, now_ms);
        return;
    }
    case HF_TIME_RESP:
        hf_get_varint(&i);
        hf_get_varint(&i);
        e->time = hf_get_varint(&i);
        e->quality = hf_get(&i);
        if (!i.bad) e->kind = HF_EVENT_TIME;
        return;
    case HF_POLL:
        d->may_send = (uint32_t)hf_get_varint(&i);
        if (d->may_send == 0) d->may_send = 1;
        return;
    default: return;
    }
}

hf_event hf_receive(hf_device *d, uint8_t byte, uint64_t now_ms)
{
    hf_event e;
    size_t len;
    uint32_t crc = 0;
    memset(&e, 0, sizeof e);
    if (d->in_done) { d->in_len = 0; d->in_too_long = d->in_done = false; }
    if (byte != 0) {
        if (d->in_len < d->in_size) d->in[d->in_len++] = byte; else d->in_too_long = true;
        return e;
    }
    if (d->in_len == 0 && !d->in_too_long) return e;
    d->in_done = true;
    len = d->in_too_long ? 0 : hf_unstuff(d->in, d->in_len);
    if (len >= 9) for (int n = 0; n < 4; n++) crc |= (uint32_t)d->in[len - 4 + (size_t)n] << (8 * n);
    if (len < 9 || hf_crc32(0, d->in, len - 4) != crc || d->in[0] >> 4 != HF_PROTOCOL || (d->in[0] & 3)) {
        d->damaged++;
        return e;
    }
    hf_on_frame(d, d->in, len - 4, &e, now_ms);
    return e;
}

/* ---- what the device says ---- */

static void hf_put_blobs(hf_out *o, const hf_request *r)
{
    hf_put_varint(o, r->blob_count);
    for (int n = 0; n < r->blob_count; n++) {
        hf_put_varint(o, r->blobs[n].blob);
        hf_put_varint(o, r->blobs[n].len);
        hf_put_varint(o, r->blobs[n].crc32);
        hf_put(o, r->blobs[n].mime);
    }
}

static size_t hf_say_submit(hf_device *d, const hf_request *r, bool repeat, uint8_t *out, size_t room)
{
    hf_out o;
    hf_begin(d, &o, out, room, HF_SUBMIT, repeat, -1);
    hf_put_varint(&o, r->key);
    hf_put(&o, r->prio);
    hf_put_varint(&o, r->ttl_s);
    hf_put(&o, r->flags);
    hf_put_varint(&o, r->max_reply);
    hf_put_varint(&o, r->op);
    if (r->op == 0) {
        hf_put_varint(&o, r->task);
        hf_put_varint(&o, r->arg_count);
        for (int n = 0; n < r->arg_count; n++) hf_put_text(&o, r->args[n]);
    } else {
        hf_put_text(&o, r->model);
        hf_put_text(&o, r->system);
        hf_put_text(&o, r->user);
        hf_put_varint(&o, r->max_tokens);
    }
    hf_put_blobs(&o, r);
    return hf_end(&o);
}

static size_t hf_say_hello(hf_device *d, uint64_t now_ms, uint8_t *out, size_t room)
{
    hf_out o;
    const hf_identity *id = &d->id;
    if (!hf_due(&d->hello, now_ms)) return 0;
    hf_begin(d, &o, out, room, HF_HELLO, d->hello.sends > 0, -1);
    hf_sent(d, &d->hello, now_ms, hf_wait_ms(d));
    hf_put(&o, HF_PROTOCOL);
    hf_put(&o, HF_PROTOCOL);
    hf_put_bytes(&o, id->uid, id->uid_len);
    hf_put_varint(&o, id->boot_id);
    hf_put_varint(&o, id->max_frame);
    hf_put_varint(&o, id->rx_credit);
    hf_put_varint(&o, id->caps);
    hf_put_text(&o, id->model);
    hf_put_text(&o, id->fw);
    hf_put(&o, id->token ? 1 : 0);
    if (id->token) hf_put_bytes(&o, id->token, id->token_len);
    return hf_end(&o);
}

/* A message of one or two numbers. */
static size_t hf_say(hf_device *d, uint8_t kind, uint64_t first, const uint32_t *second, bool repeat, int reply_to,
                     uint8_t *out, size_t room)
{
    hf_out o;
    hf_begin(d, &o, out, room, kind, repeat, reply_to);
    hf_put_varint(&o, first);
    if (second) hf_put_varint(&o, *second);
    return hf_end(&o);
}

static size_t hf_say_open(hf_device *d, const hf_keeper *k, uint64_t now_ms, uint8_t *out, size_t room)
{
    for (int n = 0; n < HF_OPEN_MAX; n++) {
        hf_open *o = &d->open[n];
        hf_request r;
        bool again = o->repeat.sends > 0;
        if ((o->stage != HF_SUBMITTING && o->stage != HF_ASKING) || !hf_due(&o->repeat, now_ms)) continue;
        if (o->stage == HF_ASKING) {
            hf_sent(d, &o->repeat, now_ms, hf_wait_ms(d));
            return hf_say(d, HF_QUERY, o->key, NULL, again, -1, out, room);
        }
        hf_sent(d, &o->repeat, now_ms, hf_wait_ms(d) + HF_STORE_MS);
        memset(&r, 0, sizeof r);
        if (k->request(k->user, o->key, &r)) return hf_say_submit(d, &r, again, out, room);
        hf_finish(d, o->key, now_ms); /* the firmware gave it up */
    }
    return 0;
}

static bool hf_picture_len(const hf_keeper *k, hf_upload *u)
{
    hf_request r;
    if (u->len_known) return true;
    memset(&r, 0, sizeof r);
    if (!k->request(k->user, u->key, &r)) return false;
    for (int n = 0; n < r.blob_count; n++) {
        if (r.blobs[n].blob != u->blob) continue;
        u->len = r.blobs[n].len;
        u->len_known = true;
    }
    return u->len_known;
}

static size_t hf_say_piece(hf_device *d, const hf_keeper *k, uint64_t now_ms, uint8_t *out, size_t room)
{
    hf_upload *u = &d->upload;
    bool again = u->repeat.sends > 0, overdue = again && hf_due(&u->repeat, now_ms);
    uint64_t limit;
    size_t len, got;
    hf_out o;
    if (!u->active) return 0;
    if (!hf_picture_len(k, u) || u->acked >= u->len
        || (overdue && (u->repeat.sends >= HF_ROUNDS_MAX || u->sent <= u->acked))) {
        hf_end_upload(d, now_ms); /* the request's repeat tells where to go on */
        return 0;
    }
    if (overdue) { u->sent = u->acked; u->went_back = false; }
    limit = (uint64_t)u->acked + u->credit;
    if (limit > u->len) limit = u->len;
    len = limit > u->sent ? (size_t)(limit - u->sent) : 0;
    if (len > d->chunk) len = d->chunk;
    if (len > d->piece_size) len = d->piece_size;
    if (len == 0) {
        if (!again) hf_sent(d, &u->repeat, now_ms, hf_wait_ms(d));
        return 0;
    }
    got = k->picture(k->user, u->key, u->blob, u->sent, d->piece, len);
    if (got == 0 || got > len) { hf_end_upload(d, now_ms); return 0; }
    if (!again || overdue) hf_sent(d, &u->repeat, now_ms, hf_wait_ms(d));
    hf_begin(d, &o, out, room, HF_CHUNK, overdue, -1);
    hf_put_varint(&o, u->blob);
    hf_put_varint(&o, u->sent);
    hf_put_bytes(&o, d->piece, got);
    u->sent += (uint32_t)got;
    return hf_end(&o);
}

static size_t hf_say_ping(hf_device *d, uint64_t now_ms, uint8_t *out, size_t room)
{
    bool again = d->ping.sends > 0;
    if (!hf_due(&d->ping, now_ms)) return 0;
    if (d->ping.sends >= HF_PINGS_MAX) {
        d->ping = hf_now(now_ms + HF_PING_EVERY_MS);
        hf_lose_session(d, now_ms);
        return hf_say_hello(d, now_ms, out, room);
    }
    hf_sent(d, &d->ping, now_ms, hf_wait_ms(d));
    return hf_say(d, HF_PING, (uint32_t)now_ms, NULL, again, -1, out, room);
}

static size_t hf_next(hf_device *d, const hf_keeper *k, uint64_t now_ms, uint8_t *out, size_t room)
{
    size_t len;
    if (!d->session) return hf_say_hello(d, now_ms, out, room);
    if (d->ack_count > 0) {
        len = hf_say(d, HF_RESULT_ACK, d->acks[0].key, &d->acks[0].next, false, d->acks[0].tag, out, room);
        memmove(&d->acks[0], &d->acks[1], sizeof d->acks[0] * (size_t)--d->ack_count);
        return len;
    }
    if (d->pong) {
        static const uint32_t none = 0;
        d->pong = false;
        return hf_say(d, HF_PONG, d->pong_nonce, &none, false, d->pong_tag, out, room);
    }
    if (d->cancelling && hf_due(&d->cancel, now_ms)) {
        bool again = d->cancel.sends > 0;
        hf_sent(d, &d->cancel, now_ms, hf_wait_ms(d));
        return hf_say(d, HF_CANCEL, d->cancel_key, NULL, again, -1, out, room);
    }
    if ((len = hf_say_open(d, k, now_ms, out, room)) > 0) return len;
    if ((len = hf_say_piece(d, k, now_ms, out, room)) > 0) return len;
    return hf_say_ping(d, now_ms, out, room);
}

size_t hf_poll(hf_device *d, const hf_keeper *k, uint64_t now_ms, uint8_t *out, size_t room)
{
    size_t len;
    if (d->id.polled && d->may_send == 0) return 0;
    len = hf_next(d, k, now_ms, out, room);
    if (!d->id.polled) return len;
    if (len == 0) {
        hf_out o;
        d->may_send = 0;
        hf_begin(d, &o, out, room, HF_IDLE, false, -1);
        return hf_end(&o);
    }
    d->may_send = d->may_send > len ? d->may_send - (uint32_t)len : 0;
    return len;
}

#endif /* HOLDFAST_LINK_IMPLEMENTATION */
#endif /* HOLDFAST_LINK_H */
