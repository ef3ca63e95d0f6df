-- The shape of the first released version. Frozen: never edited.
CREATE TABLE service (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  boot_id TEXT NOT NULL, boot_ms INTEGER NOT NULL, powered_ms INTEGER NOT NULL,
  starts INTEGER NOT NULL, next_seq INTEGER NOT NULL, turn INTEGER NOT NULL,
  queued INTEGER NOT NULL, sending INTEGER NOT NULL, unknown INTEGER NOT NULL, answered INTEGER NOT NULL,
  expired INTEGER NOT NULL, cancelled INTEGER NOT NULL, evicted INTEGER NOT NULL, dead INTEGER NOT NULL,
  ready INTEGER NOT NULL, backlog_bytes INTEGER NOT NULL, kept_bytes INTEGER NOT NULL,
  answer_bytes INTEGER NOT NULL
) STRICT;
INSERT INTO service VALUES (1, '', 0, 0, 0, 1, 0, 0,0,0,0, 0,0,0,0, 0,0,0, 0);
CREATE TABLE source (
  source_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, unfinished INTEGER NOT NULL
) STRICT;
CREATE TABLE lane (
  priority INTEGER NOT NULL, source_id INTEGER NOT NULL REFERENCES source,
  ready INTEGER NOT NULL, served INTEGER NOT NULL, PRIMARY KEY (priority, source_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX lane_turn ON lane (priority, served, source_id) WHERE ready > 0;
CREATE TABLE request (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source_id INTEGER NOT NULL REFERENCES source,
  state INTEGER NOT NULL, priority INTEGER NOT NULL, deferred INTEGER NOT NULL,
  attempts INTEGER NOT NULL, maybe_billed INTEGER NOT NULL,
  accepted_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
  created_unix_ms INTEGER NOT NULL, ttl_ms INTEGER NOT NULL,
  policy INTEGER NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, label TEXT,
  idempotency_key TEXT, body_bytes INTEGER NOT NULL, body_hash BLOB NOT NULL,
  body_kept INTEGER NOT NULL, body_file TEXT,
  reason TEXT, error_kind TEXT, error_message TEXT
) STRICT;
CREATE UNIQUE INDEX request_key ON request (source_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX request_file ON request (body_file) WHERE body_file IS NOT NULL;
CREATE INDEX request_state ON request (state, seq);
CREATE INDEX request_source ON request (source_id, state, seq);
CREATE INDEX request_ready ON request (priority, source_id, seq) WHERE state = 0 AND deferred = 0;
CREATE INDEX request_queued ON request (priority, seq, deferred) WHERE state = 0;
CREATE INDEX request_deferred ON request (deferred) WHERE state = 0 AND deferred > 0;
CREATE INDEX request_expiry ON request (expires_at) WHERE state = 0;
CREATE INDEX request_ended ON request (ended_at) WHERE state >= 3;
CREATE TABLE body (seq INTEGER PRIMARY KEY REFERENCES request, bytes BLOB NOT NULL) STRICT;
CREATE TABLE answer (
  seq INTEGER NOT NULL REFERENCES request, local INTEGER NOT NULL,
  uplink TEXT NOT NULL, model TEXT NOT NULL, status INTEGER NOT NULL, content_type TEXT NOT NULL,
  latency_ms INTEGER NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
  at_unix_ms INTEGER NOT NULL, size INTEGER NOT NULL, hash BLOB NOT NULL, bytes BLOB, file TEXT,
  PRIMARY KEY (seq, local)
) STRICT;
CREATE UNIQUE INDEX answer_file ON answer (file) WHERE file IS NOT NULL;
